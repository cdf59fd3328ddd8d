"""Keyframes and steps side by side, as one HTML file that needs nothing beside it."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coc_vla.authors.vlm import Pictures, image_url
from coc_vla.labels.record import CocLabel
from world_modality.system.atomic import replacing

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --error: #c0392b; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1180px; padding: 16px; }
h1 { font-size: 22px; margin: 0 0 4px; }
.note { opacity: .75; margin: 0 0 16px; }
article { border-top: 1px solid var(--line); display: grid; gap: 20px; padding: 16px 0;
  grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
h2 { font-size: 16px; margin: 0; grid-column: 1 / -1; }
h2 small { font-weight: normal; opacity: .75; }
.frames { display: grid; gap: 8px; align-content: start;
  grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
figure { margin: 0; max-width: 256px; }
figure img { width: 100%; display: block; border-radius: 4px; }
figcaption { font-size: 13px; opacity: .75; }
ol { margin: 0; padding-left: 22px; }
li { margin-bottom: 8px; }
.why { display: block; opacity: .8; }
.error { color: var(--error); margin: 0 0 8px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: 13px; }
@media (max-width: 760px) { article { grid-template-columns: minmax(0, 1fr); } }
"""


@dataclass(frozen=True)
class SheetEntry:
    """One episode of the sheet.

    Attributes:
        record: its label or error.
        images: its keyframes, or why they cannot be shown.
        fps: frames per second.
    """

    record: CocLabel
    images: Pictures | str
    fps: float


def write_contact_sheet(path: Path, title: str, note: str, entries: Sequence[SheetEntry]) -> None:
    """Write the sheet atomically.

    Args:
        path: an `.html` file.
        title: its heading.
        note: the line below.
        entries: the episodes in order.
    """
    articles = "\n".join(_article(entry) for entry in entries)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="note">{html.escape(note)}</p>\n'
        f"{articles}\n</body>\n</html>\n"
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")


def _article(entry: SheetEntry) -> str:
    record = entry.record
    return (
        f"<article><h2>{html.escape(record.instruction)} <small>episode {record.episode_id}, "
        f"{html.escape(record.model_name)}, questions asked: {record.attempts}</small></h2>\n"
        f'<div class="frames">{_frames(entry)}</div>\n<div>{_text(record)}</div></article>'
    )


def _frames(entry: SheetEntry) -> str:
    if isinstance(entry.images, str):
        return f'<p class="error">{html.escape(entry.images)}</p>'
    figures = []
    for index, image in zip(entry.record.keyframe_indices, entry.images, strict=True):
        caption = f"frame {index}, {index / entry.fps:.1f} s"
        source = image_url(image)
        figures.append(
            f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption>'
            "</figure>"
        )
    return "".join(figures)


def _text(record: CocLabel) -> str:
    if record.error is not None:
        return (
            f'<p class="error">{html.escape(record.error)}</p>'
            f"<pre>{html.escape(record.raw_text) or '(no answer)'}</pre>"
        )
    steps = "".join(
        f'<li>{html.escape(step.what)}<span class="why">Why: {html.escape(step.why)}</span></li>'
        for step in record.coc_text
    )
    return f"<ol>{steps}</ol>"
