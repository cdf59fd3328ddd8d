"""What a frame holds, and how far a window reaches around it: sizes alone, without arrays."""

from dataclasses import dataclass

from world_modality.system.errors import InvalidInputError


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
    """

    observation: ObservationShape
    world: WorldShape
    state_dim: int
    action_dim: int
    instruction_dim: int = 0


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

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InvalidInputError(f"--{name} must be at least 1, not {value}")
