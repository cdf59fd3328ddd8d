"""Pictures of frames that share a world token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from world_modality.system.atomic import replacing

TILE_SIDE = 160
SHEET_TILE_SIDE = 88
MARGIN = 6
HEADER_HEIGHT = 24
CAPTION_HEIGHT = 28
FONT_SIZE = 11
SHEET_LABEL_WIDTH = 120
GRID_COLUMNS = 4
BACKGROUND = (250, 250, 250)
INK = (20, 20, 20)
FAINT_INK = (110, 110, 110)
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Tile:
    """One frame with what is written below it.

    Attributes:
        image: as a grid shows it.
        caption: the first line.
        task: the second line.
        small_image: as the contact sheet shows it, if not the same.
    """

    image: UInt8[np.ndarray, "H W 3"]
    caption: str
    task: str
    small_image: UInt8[np.ndarray, "H2 W2 3"] | None = None


def thumbnail(
    image: UInt8[np.ndarray, "H W 3"], side: int = TILE_SIDE
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Scale an image so that its longer side is `side`."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    # Enlarged pixels stay visible as such; nothing is invented between them.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size, method))


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def draw_grid(title: str, tiles: Sequence[Tile]) -> Image.Image:
    """Draw the tiles of one token, up to four in a row, under a title."""
    font = ImageFont.load_default(FONT_SIZE)
    tile_width = max(tile.image.shape[1] for tile in tiles)
    tile_height = max(tile.image.shape[0] for tile in tiles) + CAPTION_HEIGHT
    columns = min(GRID_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    title_font = ImageFont.load_default(FONT_SIZE + 2)
    width = max(columns * (tile_width + MARGIN), round(title_font.getlength(title)) + MARGIN)
    canvas = Image.new(
        "RGB", (width + MARGIN, HEADER_HEIGHT + rows * (tile_height + MARGIN)), BACKGROUND
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN - 1), title, fill=INK, font=title_font)
    for i, tile in enumerate(tiles):
        x = MARGIN + (i % columns) * (tile_width + MARGIN)
        y = HEADER_HEIGHT + (i // columns) * (tile_height + MARGIN)
        canvas.paste(Image.fromarray(tile.image), (x, y))
        y += tile.image.shape[0]
        draw.text((x, y), _fit(tile.caption, font, tile_width), fill=INK, font=font)
        draw.text((x, y + 13), _fit(tile.task, font, tile_width), fill=FAINT_INK, font=font)
    return canvas


def draw_contact_sheet(title: str, rows: Sequence[tuple[str, str, Sequence[Tile]]]) -> Image.Image:
    """Draw one row of small tiles per token.

    Args:
        title: written on top.
        rows: for each token its name, a line about it, and its tiles.
    """
    font = ImageFont.load_default(FONT_SIZE)
    bold = ImageFont.load_default(FONT_SIZE + 2)
    step = SHEET_TILE_SIDE + MARGIN
    columns = max(len(tiles) for _, _, tiles in rows)
    width = max(SHEET_LABEL_WIDTH + columns * step, round(bold.getlength(title)) + MARGIN) + MARGIN
    canvas = Image.new("RGB", (width, HEADER_HEIGHT + len(rows) * step), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN - 1), title, fill=INK, font=bold)
    for row, (name, line, tiles) in enumerate(rows):
        y = HEADER_HEIGHT + row * step
        draw.text((MARGIN, y + 4), name, fill=INK, font=bold)
        label = _fit(line, font, SHEET_LABEL_WIDTH - MARGIN)
        draw.text((MARGIN, y + 24), label, fill=FAINT_INK, font=font)
        for column, tile in enumerate(tiles):
            shown = tile.image if tile.small_image is None else tile.small_image
            small = Image.fromarray(thumbnail(shown, SHEET_TILE_SIDE))
            canvas.paste(small, (SHEET_LABEL_WIDTH + column * step, y))
    return canvas


def save_jpeg(image: Image.Image, path: Path) -> None:
    """Write a JPEG atomically."""
    with replacing(path) as partial:
        image.save(partial, format="JPEG", quality=JPEG_QUALITY)
