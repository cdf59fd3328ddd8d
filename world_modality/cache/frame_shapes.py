"""What a frame holds, and how far a window reaches around it: sizes alone, without arrays."""

from dataclasses import dataclass

from world_modality.system.errors import InvalidInputError, require_at_least


@dataclass(frozen=True)
class ObservationShape:
    """What is observed of a frame: P vectors of dimension D.

    An observation may hold several views (cameras), each of them one vector or a grid of g×g
    vectors: P = views × g², view by view and row by row.

    Attributes:
        embedding_dim: D.
        num_views: how many views there are.
        grid_size: g of each view.
    """

    embedding_dim: int
    num_views: int = 1
    grid_size: int = 1

    @property
    def num_vectors(self) -> int:
        """P."""
        return self.num_views * self.grid_size**2

    @property
    def axis(self) -> tuple[int, ...]:
        """The axis P of arrays and tensors, which one vector a frame does without."""
        return () if self.num_vectors == 1 else (self.num_vectors,)


@dataclass(frozen=True)
class WorldShape:
    """The world's state at a frame: W tokens (slots), each one of V.

    Attributes:
        num_world_tokens: V.
        num_world_slots: W.
    """

    num_world_tokens: int
    num_world_slots: int = 1

    @property
    def axis(self) -> tuple[int, ...]:
        """The axis W of arrays and tensors, which one token a frame does without."""
        return () if self.num_world_slots == 1 else (self.num_world_slots,)


@dataclass(frozen=True)
class FrameShape:
    """What a cache gives of every frame.

    Attributes:
        observation: what is seen.
        world: the state of the world.
        state_dim: S.
        action_dim: A.
        instruction_dim: L; 0 without language.
        future_dim: dimension of the pooled embedding, where those of frames ahead are needed; 0
            without.
        num_change_tokens: size of the codebook of changes, where its tokens are; 0 without.
    """

    observation: ObservationShape
    world: WorldShape
    state_dim: int
    action_dim: int
    instruction_dim: int = 0
    future_dim: int = 0
    num_change_tokens: int = 0


@dataclass(frozen=True)
class WindowShape:
    """How far a window reaches around its frame, in frames."""

    context_frames: int = 1
    """Number T of frames that the policy sees, the newest included."""
    chunk_size: int = 8
    """Number H of actions that are predicted at once."""
    future_offset: int = 8
    """Number K of future world tokens that are predicted (arm A predicts none)."""
    future_stride: int = 1
    """Frames between the K predicted tokens."""
    context_stride: int = 1
    """Frames between the T frames that the policy sees."""
    world_history: int = 0
    """Number n of earlier frames whose world tokens are read beside the newest frame's (arm C)."""
    world_history_stride: int = 1
    """Frames between the 1 + n frames whose world tokens are read (arm C)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require_at_least(name, value, 0 if name == "world_history" else 1)
        for stride, is_used, without in (
            ("context_stride", self.context_frames > 1, "--context_frames 1"),
            ("world_history_stride", self.world_history > 0, "--world_history 0"),
        ):
            if (value := getattr(self, stride)) > 1 and not is_used:
                raise InvalidInputError(f"--{stride} {value} has no effect with {without}")

    @property
    def context_lags(self) -> tuple[int, ...]:
        """How many frames before the newest the T frames lie, oldest first."""
        return _lags(self.context_frames, self.context_stride)

    @property
    def world_lags(self) -> tuple[int, ...]:
        """How many frames before the newest the R = 1 + n frames lie whose tokens are read."""
        return _lags(1 + self.world_history, self.world_history_stride)

    @property
    def past_frames(self) -> int:
        """How many frames before the newest the earliest lies of which anything is read."""
        return max(*self.context_lags, *self.world_lags)

    @property
    def history_axis(self) -> tuple[int, ...]:
        """The axis R of the tokens that are read, which those of one frame do without."""
        return (1 + self.world_history,) if self.world_history else ()


def _lags(count: int, stride: int) -> tuple[int, ...]:
    return tuple(stride * back for back in reversed(range(count)))
