import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rollouts.config import RolloutConfig
from world_modality.acting.action_chunks import ChunkExecution
from world_modality.system.errors import InvalidInputError

H, A = 5, 3
CONFIG = RolloutConfig(checkpoint=(Path("model.pt"),))


def execution(**flags) -> ChunkExecution:
    return dataclasses.replace(CONFIG, **flags).execution(H)


def predicted(num_frames: int, scale: float = 0.3) -> dict[int, np.ndarray]:
    """Return a chunk for each frame, as a policy that is asked at every frame predicts them."""
    rng = np.random.default_rng(0)
    return {t: rng.normal(0, scale, (H, A)).astype(np.float32) for t in range(num_frames)}


@pytest.mark.parametrize(("flags", "expected"), [({}, H), ({"n_action_steps": 2}, 2)])
def test_the_chunk_or_its_first_actions_are_executed_as_predicted(flags, expected):
    executed = execution(**flags)
    assert executed.n_action_steps == expected
    np.testing.assert_array_equal(
        executed.actions(predicted(1), 0), np.clip(predicted(1)[0][:expected], -1, 1)
    )
    assert executed.kept(predicted(1), 0) == {}, "nothing is averaged"


def test_more_actions_than_are_predicted_are_refused():
    with pytest.raises(InvalidInputError, match="--n_action_steps 6: the policy predicts 5"):
        execution(n_action_steps=6)


def test_actions_are_clipped_to_the_simulators_range():
    actions = execution().actions(predicted(1, scale=20), 0)
    assert (actions.dtype, actions.min(), actions.max()) == (np.float32, -1, 1)


@pytest.mark.parametrize("coeff", [0.0, 0.01, 0.7, -0.5])
def test_ensembling_weighs_what_each_chunk_says_about_the_frame_oldest_first(coeff):
    ensembling = execution(temporal_ensemble_coeff=coeff)
    assert ensembling.n_action_steps == 1, "it asks at every frame"
    chunks = predicted(9)
    for t in range(9):
        seen = {made: chunk for made, chunk in chunks.items() if made <= t}
        total, norm = np.zeros(A), 0.0
        for i, made in enumerate(range(max(0, t - H + 1), t + 1)):  # i = 0 is the oldest
            total += np.exp(-coeff * i) * chunks[made][t - made]
            norm += np.exp(-coeff * i)
        actions = ensembling.actions(seen, t)
        assert actions.shape == (1, A)
        np.testing.assert_allclose(actions[0], np.clip(total / norm, -1, 1), rtol=1e-6)


def test_ensembling_forgets_no_chunk_that_it_still_needs_and_keeps_no_other():
    ensembling = execution(temporal_ensemble_coeff=0.1)
    chunks, kept = predicted(12), {}
    for t, chunk in chunks.items():
        kept[t] = chunk
        whole = {made: c for made, c in chunks.items() if made <= t}
        np.testing.assert_array_equal(ensembling.actions(kept, t), ensembling.actions(whole, t))
        kept = ensembling.kept(kept, t)
        assert len(kept) <= H - 1


def test_clipping_comes_after_averaging():
    # Averaged first, 3 and -1 make 1; clipped first, they would make 0.
    chunks = {0: np.full((H, A), 3.0, np.float32), 1: np.full((H, A), -1.0, np.float32)}
    assert (execution(temporal_ensemble_coeff=0.0).actions(chunks, 1) == 1).all()
