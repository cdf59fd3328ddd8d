"""A report as its parts, before anybody decides between HTML, Markdown and LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | float | int | None


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table; `name` becomes its file names."""

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A drawing, and the numbers that it draws.

    Attributes:
        name: becomes its file names.
        caption: what is drawn, units and n included.
        svg: the drawing.
        header: columns of the numbers.
        rows: the numbers.
    """

    name: str
    caption: str
    svg: bytes
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Media:
    """A photograph or a film, as the stage wrote it."""

    caption: str
    mime: str
    content: bytes
    path: str


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    lines: tuple[str, ...]


Block = Text | Bullets | Table | Figure | Media | Commands


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: of the page.
        made: when and where, the one line that differs between two reports of the same inputs.
        sections: in reading order.
    """

    title: str
    made: str
    sections: tuple[Section, ...]

    def blocks(self) -> list[Block]:
        """Return the blocks of all sections in order."""
        return [block for section in self.sections for block in section.blocks]


def table(name: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Build a table from any sequences."""
    return Table(name, caption, tuple(header), tuple(tuple(row) for row in rows))
