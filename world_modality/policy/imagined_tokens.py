"""World tokens of frames that a policy does not see: those that it predicted, or the last one."""

import math
from collections.abc import Iterable
from typing import Generic, TypeVar

from world_modality.cache.frame_shapes import WindowShape
from world_modality.system.errors import InvalidInputError

T = TypeVar("T")


class ImaginedTokens(Generic[T]):
    """What one knows of the world tokens of successive frames, seen or not.

    A seen frame has its own token, and one that is not seen the newest prediction of it: made from
    seen frames, or in the dark from predictions. Where no prediction reaches a frame, its token is
    that of the last frame that has one. So without predictions the last seen token is held.

    A frame's token may be anything that stands for it: one number, an array of a frame's slots, or
    the tokens of many episodes at once.
    """

    def __init__(self) -> None:
        self._known: dict[int, T] = {}

    def see(self, frame: int, token: T) -> None:
        """Note a frame's own token."""
        self._known[frame] = token

    def predict(self, frame: int, stride: int, tokens: Iterable[T]) -> None:
        """Note what was predicted at a frame: the tokens `stride`, 2·`stride`, … frames later."""
        for number, token in enumerate(tokens, start=1):
            self._known[frame + stride * number] = token

    def at(self, frame: int) -> T:
        """Return the token of a frame that is not seen; some frame before it has to be known."""
        return self._known[max(known for known in self._known if known <= frame)]

    def forget_before(self, frame: int) -> None:
        """Drop what no question about this frame or a later one needs."""
        last = max((known for known in self._known if known <= frame), default=frame)
        self._known = {known: token for known, token in self._known.items() if known >= last}


def require_reach(window: WindowShape, n_action_steps: int) -> None:
    """Check that a policy predicts the token of the frame in which it is asked again.

    It is asked every `n_action_steps` frames, and predicts every `future_stride`-th: of the frames
    that are both, the first has to lie within the K predicted ones.

    Raises:
        InvalidInputError: it does not; the message names what to train or to execute instead.
    """
    num_predicted, stride = window.future_offset, window.future_stride
    needed = math.lcm(n_action_steps, stride)
    if needed > num_predicted * stride:
        raise InvalidInputError(
            f"the policy predicts the world tokens of {num_predicted} frames, every {stride} "
            f"(--future_offset {num_predicted} --future_stride {stride}), and with "
            f"--n_action_steps {n_action_steps} it would need that of {needed} frames ahead; "
            "execute fewer actions of a chunk, or train with a larger --future_offset"
        )
