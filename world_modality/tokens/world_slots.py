"""Which vectors of a frame have world tokens: the pooled one, each view, or each cell."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from world_modality.cache.frame_shapes import ObservationShape
from world_modality.system.errors import InvalidInputError

WorldSlots = Literal["frame", "view", "cell"]
# What the tokens of a codebook are of whose record does not say it.
FIRST_SLOTS: WorldSlots = "frame"


def num_slot_vectors(shape: ObservationShape, slots: WorldSlots) -> int:
    """Return how many vectors of a frame are quantised."""
    return {"frame": 1, "view": shape.num_views, "cell": shape.num_vectors}[slots]


def require_cells(slots: WorldSlots, *, are_kept: bool) -> None:
    """Refuse tokens of views or cells where only pooled vectors are kept.

    Raises:
        InvalidInputError: they are asked for.
    """
    if slots != FIRST_SLOTS and not are_kept:
        raise InvalidInputError(
            f"--world_slots {slots} gives tokens to views or cells, but only one pooled vector a "
            "frame is kept; precompute with several --image_key, --embedding_grid or "
            "--embedding_components, or with --world_slots frame"
        )


def slot_vectors(
    pooled: Float[np.ndarray, "B D"] | None,
    cells: Float[np.ndarray, "B P M"] | None,
    shape: ObservationShape,
    slots: WorldSlots,
) -> Float[np.ndarray, "B slots dim"]:
    """Return the vectors of frames that are quantised.

    Args:
        pooled: of the first view; only `frame` needs them.
        cells: view by view and row by row; only `view` and `cell` need them.
        shape: of the cells.
        slots: `frame` takes the pooled vector, `cell` each cell, `view` the mean of a view's cells,
            in float32.

    Raises:
        InvalidInputError: only pooled vectors are kept, and tokens of views or cells asked for.
    """
    if slots == "frame":
        assert pooled is not None, "the frame's token is that of the pooled vector"
        return pooled[:, None]
    require_cells(slots, are_kept=cells is not None)
    assert cells is not None
    if slots == "cell":
        return cells
    by_view = cells.astype(np.float32).reshape(
        len(cells), shape.num_views, shape.grid_size**2, cells.shape[-1]
    )
    means: np.ndarray = by_view.mean(axis=2)
    return means
