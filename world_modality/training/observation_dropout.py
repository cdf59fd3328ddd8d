"""Training windows in which the camera is dark, so that a policy learns to act without it."""

import dataclasses
import zlib

import numpy as np
import torch
from jaxtyping import Bool

from world_modality.cache.frame_tensors import Batch

# Keeps these draws apart from those of the data order, which are seeded by the same numbers.
_STREAM = zlib.crc32(b"observation dropout")


class ObservationDropout:
    """Draws the windows with dark frames, as an outage of the camera leaves them.

    With the given probability one, two, …, or all T frames of a window's context are dark, each
    number equally likely, one behind the other. With one frame of context that is the newest. With
    more, an outage has not ended yet in half of the windows: its last frame is the newest. In the
    other half it may have: it lies anywhere in the context, since what is seen again after an
    outage in closed loop comes with dark frames before it.

    What is masked is the frames' embeddings. The robot's state stays, since an outage of the camera
    leaves the robot's own sensors alone; so do the targets, so that arms that predict learn the
    future from what is left.

    Arm C goes on reading the true world tokens, those of the dark frames too: teacher forcing
    (Williams and Zipser, 1989). In closed loop it reads its own predictions there, which are what
    the true tokens are when they are right, so that both its actions and its next predictions are
    learned from the inputs that it will have; rolling out its predictions in training would cost a
    forward pass for each dark chunk, and would teach it early that the token is noise. The last
    token seen before the dark (`--world_input hold`) is therefore a control in closed loop, and not
    what is trained.

    Every arm of one seed has the same dark windows: draws depend on seed and step alone, not on
    torch's generator, whose numbers (the dropout inside the network) stay what they are without it.

    Args:
        share: of the windows; 0 draws nothing.
        context_frames: T.
        seed: of the training.
    """

    def __init__(self, share: float, context_frames: int, seed: int) -> None:
        self._share = share
        self._context_frames = context_frames
        self._seed = seed

    def draw(self, num_windows: int, step: int) -> Bool[np.ndarray, "B T"]:
        """Return which frames of each window are dark, oldest first.

        Args:
            num_windows: of the whole batch.
            step: optimiser steps made before.
        """
        rng = np.random.default_rng([self._seed, _STREAM, step])
        is_dropped = rng.random(num_windows) < self._share
        num_dark = rng.integers(1, self._context_frames, num_windows, endpoint=True)
        may_have_ended = rng.random(num_windows) < 0.5
        num_seen_since = may_have_ended * rng.integers(0, self._context_frames - num_dark + 1)
        lag = np.arange(self._context_frames)[::-1] - num_seen_since[:, None]
        dark: np.ndarray = is_dropped[:, None] & (lag >= 0) & (lag < num_dark[:, None])
        return dark

    def applied(
        self, batch: Batch, num_windows: int, step: int, part: slice = slice(None)
    ) -> Batch:
        """Return a batch with its dark frames marked; with a share of 0 it is as it was.

        Args:
            batch: the rows `part` of the whole batch.
            num_windows: of the whole batch.
            step: optimiser steps made before.
            part: which rows these are.
        """
        if self._share == 0:
            return batch
        dark = torch.from_numpy(self.draw(num_windows, step)[part])
        return dataclasses.replace(batch, is_dark=dark.to(batch.states.device))
