import pytest

from world_modality.cache.frame_shapes import WindowShape
from world_modality.policy.imagined_tokens import ImaginedTokens, require_reach
from world_modality.system.errors import InvalidInputError


def test_without_predictions_the_last_seen_token_is_held():
    known = ImaginedTokens()
    known.see(3, 30)
    known.see(5, 50)
    assert [known.at(frame) for frame in (3, 4, 5, 9)] == [30, 30, 50, 50]


def test_the_newest_prediction_of_a_frame_counts_and_its_own_token_more():
    known = ImaginedTokens()
    known.see(4, 40)
    known.predict(4, 2, [61, 81, 101])
    assert [known.at(frame) for frame in (5, 6, 7, 8, 10, 20)] == [40, 61, 61, 81, 101, 101]
    known.predict(6, 2, [82, 102, 122])
    assert [known.at(frame) for frame in (6, 8, 12)] == [61, 82, 122]
    known.see(8, 80)
    assert known.at(8) == 80


def test_forgetting_keeps_what_later_frames_need():
    known = ImaginedTokens()
    known.see(0, 1)
    known.see(4, 2)
    known.predict(4, 4, [3, 4])
    known.forget_before(10)
    assert [known.at(frame) for frame in (10, 12, 15)] == [3, 4, 4]
    with pytest.raises(ValueError, match="empty"):
        known.at(7)


@pytest.mark.parametrize(
    ("future_offset", "stride", "n_action_steps", "reaches"),
    [
        (8, 1, 8, True),
        (8, 1, 9, False),
        (2, 4, 8, True),
        (3, 2, 8, False),
        (4, 2, 1, True),
        (1, 4, 1, True),
        (2, 3, 2, True),
        (1, 3, 2, False),
    ],
)
def test_predictions_have_to_reach_the_frame_in_which_the_policy_is_asked_again(
    future_offset, stride, n_action_steps, reaches
):
    window = WindowShape(future_offset=future_offset, future_stride=stride)
    if reaches:
        require_reach(window, n_action_steps)
        return
    message = rf"--future_stride {stride}\), and with --n_action_steps {n_action_steps} it would"
    with pytest.raises(InvalidInputError, match=message):
        require_reach(window, n_action_steps)
