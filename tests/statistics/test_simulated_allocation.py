"""Ways of allocating rollouts that were simulated, and are not used."""

import json

import numpy as np
import pytest

from world_modality.statistics.sequential import SeedPlan
from world_modality.statistics.simulated_allocation import (
    WAYS,
    AllocationConfig,
    compare,
    draw,
    estimate,
    run,
    variance_at_equal_cost,
    worlds,
)

PLAN = SeedPlan(8, 4)


def test_worlds_have_the_difference_that_they_are_named_after():
    assert [round(world.effect, 4) for world in worlds()] == [0.0, 0.03, -0.03]
    solved = draw(np.random.default_rng(0), worlds()[2], 4000, 5)
    lost = ~solved[0, :, -1].any(axis=-1)
    assert lost.mean() == pytest.approx(worlds()[2].lost, abs=0.02)


def test_a_task_that_is_not_run_again_keeps_its_weight():
    solved = np.zeros((2, 8, 6, 60), bool)
    solved[:, :, 3:] = True  # three tasks all alike
    solved[0, :, 0] = True  # and one in which the first arm is always better
    solved[:, :4, 0, 0], solved[0, :4, 1, 0], solved[1, :4, 2, 0] = [[False], [True]], True, True
    everything, _ = estimate(solved, "everything", 8, 4)
    for way in ("by episodes", "by trainings", "moved"):
        found, num_episodes = estimate(solved, way, 8, 4)
        assert found.value == pytest.approx(everything.value, abs=0.005)
        assert found.error.value > 0
        assert num_episodes != 120
    fewer = estimate(solved, "by episodes", 8, 4)
    assert fewer[1] == 90
    assert fewer[0].error.value < estimate(solved, "by trainings", 8, 4)[0].error.value


def test_a_task_that_is_not_run_again_hides_the_trainings_that_lose_it():
    found = {one.way: one for one in compare(worlds()[2], SeedPlan(20, 4), 100, 0)}
    assert found["by episodes"].wrong_equivalence > found["everything"].wrong_equivalence + 0.05
    assert found["by episodes"].mean_episodes < found["everything"].mean_episodes == 120


def test_a_control_variate_pays_only_where_it_says_nearly_everything():
    assert variance_at_equal_cost(0.5, 0.5) == pytest.approx(1.0)
    assert variance_at_equal_cost(0.95, 0.5) < 0.9


def test_the_script_writes_what_it_prints(tmp_path, capsys):
    path = tmp_path / "allocation.json"
    found = run(AllocationConfig(path, num_experiments=2, max_seeds=8))
    assert len(found) == 3 * len(WAYS)
    assert "no difference, everything" in capsys.readouterr().out
    assert len(json.loads(path.read_text("utf-8"))["ways"]) == len(found)
