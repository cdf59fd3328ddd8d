"""A report as one HTML page that needs nothing else: no network, no file beside it."""

import base64
import itertools
from collections.abc import Sequence
from pathlib import Path

import jinja2

from world_modality.verdict.document import Block, Document

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def html_page(document: Document) -> str:
    """Return the page; every text in it is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(document=document, uri=_data_uri, runs=_runs)


def _data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _runs(blocks: Sequence[Block]) -> list[tuple[str, list[Block]]]:
    """Return neighbouring blocks of a kind together, so that films lie side by side."""
    grouped = itertools.groupby(blocks, key=lambda block: type(block).__name__)
    return [(kind, list(run)) for kind, run in grouped]
