import numpy as np

from coc_vla.events.recorded import EVENT_TYPES
from coc_vla.head.judge import read_verdict
from coc_vla.head.scores import (
    common_subsequence,
    count_events,
    partners_across_tasks,
    partners_within_task,
)


def test_order_counts_in_a_group_and_the_number_in_a_single_type():
    claimed, recorded = ["lifted", "gripper_closes"], ["gripper_closes", "lifted", "goal"]
    both = count_events([claimed], [recorded], EVENT_TYPES)
    assert (both.right[0], both.claimed[0], both.recorded[0]) == (1, 2, 3)
    assert count_events([claimed], [recorded], ["lifted"]).right[0] == 1


def test_common_subsequence_equals_brute_force():
    rng = np.random.default_rng(0)

    def brute(a, b):
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + brute(a[1:], b[1:])
        return max(brute(a[1:], b), brute(a, b[1:]))

    for _ in range(50):
        a, b = (rng.integers(0, 3, rng.integers(0, 7)).tolist() for _ in range(2))
        assert common_subsequence(a, b) == brute(a, b)


def test_partners_are_of_the_same_task_or_of_another_and_never_oneself():
    tasks = np.array([0, 1, 0, 2, 1, 0, 2, 1, 0, 2])
    for seed in range(5):
        within = partners_within_task(tasks, np.random.default_rng(seed))
        across = partners_across_tasks(tasks, np.random.default_rng(seed))
        assert (tasks[within] == tasks).all()
        assert (within != np.arange(10)).all()
        assert (tasks[across] != tasks).all()
        assert sorted(across.tolist()) == sorted(within.tolist()) == list(range(10))


def test_verdicts_are_read_and_what_is_unclear_stays_unclear():
    text = "<think>coverage: false</think>**Coverage**: TRUE\ncorrectness - False."
    assert read_verdict(text) == {"coverage": True, "correctness": False, "minimality": None}
    assert read_verdict("coverage: True\ncoverage: False")["coverage"] is None
