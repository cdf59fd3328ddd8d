"""Where in a frame's images the vector lies that a world token was made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from world_modality.cache.contract import Cache
from world_modality.evaluation.token_grid import TILE_SIDE, thumbnail
from world_modality.tokens.world_slots import FIRST_SLOTS

OUTLINE = (255, 40, 40)
GAP = 4
GAP_COLOUR = 250


@dataclass(frozen=True)
class SlotPlace:
    """One of the vectors of a frame that have world tokens.

    Attributes:
        image_key: the camera.
        row, column: of the cell, from 0; None where the vector is of the whole view.
    """

    image_key: str
    row: int | None = None
    column: int | None = None

    @property
    def name(self) -> str:
        """As captions say it."""
        camera = self.image_key.rsplit(".", 1)[-1]
        return camera if self.row is None else f"{camera}, row {self.row}, column {self.column}"

    @property
    def record(self) -> dict[str, Any]:
        """As JSON says it."""
        cell = {} if self.row is None else {"row": self.row, "column": self.column}
        return {"image_key": self.image_key, **cell}


def slot_places(cache: Cache) -> list[SlotPlace]:
    """Return where the vectors of a frame lie that have tokens, in their order."""
    slots = cache.manifest["codebook"].get("slots", FIRST_SLOTS)
    if slots == FIRST_SLOTS:
        return [SlotPlace(cache.image_keys[0])]
    grid_size = cache.observation_shape.grid_size
    if slots == "view" or grid_size == 1:
        return [SlotPlace(key) for key in cache.image_keys]
    return [
        SlotPlace(key, row, column)
        for key in cache.image_keys
        for row in range(grid_size)
        for column in range(grid_size)
    ]


@dataclass(frozen=True)
class Box:
    """A part of an image, in pixels that need not be whole."""

    left: float
    top: float
    width: float
    height: float

    def cell(self, grid_size: int, row: int, column: int) -> "Box":
        """Return one of the g x g parts."""
        width, height = self.width / grid_size, self.height / grid_size
        return Box(self.left + column * width, self.top + row * height, width, height)

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, rounded; right and bottom are not part of it."""
        right, bottom = round(self.left + self.width), round(self.top + self.height)
        left, top = round(self.left), round(self.top)
        return left, top, max(right, left + 1), max(bottom, top + 1)


def seen_box(preprocessing: Mapping[str, Any], width: int, height: int) -> Box:
    """Return which part of an image an encoder sees, whose grid is one of that part.

    Args:
        preprocessing: of the manifest's `encoder`. A processor of transformers resizes to `size`
            and cuts out the middle, `crop_size`; any other encoder sees the whole image.
        width: of the image.
        height: of the image.
    """
    whole = Box(0, 0, width, height)
    crop = preprocessing.get("crop_size") or {}
    if not (preprocessing.get("do_center_crop") and {"height", "width"} <= crop.keys()):
        return whole
    size = preprocessing.get("size") or {}
    across = down = 1.0
    if preprocessing.get("do_resize", True):
        if "shortest_edge" in size:
            across = down = size["shortest_edge"] / min(width, height)
        elif {"height", "width"} <= size.keys():
            across, down = size["width"] / width, size["height"] / height
    # What is cut out of a smaller image is padded, with nothing to see.
    seen = min(crop["width"] / across, width), min(crop["height"] / down, height)
    return Box((width - seen[0]) / 2, (height - seen[1]) / 2, *seen)


def cell_images(
    image: UInt8[np.ndarray, "H W 3"], box: Box
) -> tuple[UInt8[np.ndarray, "side width 3"], UInt8[np.ndarray, "side2 width2 3"]]:
    """Return a cell beside the frame that it is outlined in, and the cell alone.

    Args:
        image: the frame.
        box: of the cell.
    """
    left, top, right, bottom = box.corners
    crop = thumbnail(image[top:bottom, left:right])
    frame = thumbnail(image)
    # Drawn on the small image, so that the line is as thick whatever the frame's size.
    scale = TILE_SIDE / max(image.shape[:2])
    drawn = Image.fromarray(frame)
    corners = [round(value * scale) for value in (left, top, right, bottom)]
    edge = corners[0], corners[1], max(corners[2] - 1, corners[0]), max(corners[3] - 1, corners[1])
    ImageDraw.Draw(drawn).rectangle(edge, outline=OUTLINE, width=2)
    frame = np.asarray(drawn)
    height = max(len(frame), len(crop))
    tile = np.full((height, frame.shape[1] + GAP + crop.shape[1], 3), GAP_COLOUR, dtype=np.uint8)
    tile[: len(frame), : frame.shape[1]] = frame
    tile[: len(crop), frame.shape[1] + GAP :] = crop
    return tile, crop
