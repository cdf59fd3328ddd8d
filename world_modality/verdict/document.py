"""A report as its parts, before anybody decides between HTML, Markdown and LaTeX."""

import base64
import csv
import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2

ItemT = TypeVar("ItemT")
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


def table_of(
    name: str, caption: str, items: Iterable[ItemT], columns: Mapping[str, Callable[[ItemT], str]]
) -> Table:
    """Build a table of a row an item; a column is its heading and what its cells say."""
    rows = [[cell(item) for cell in columns.values()] for item in items]
    return table(name, caption, list(columns), rows)


_LATEX = {
    "\\": r"\textbackslash{}",
    "–": "--",
    "−": r"$-$",
    "×": r"$\times$",
    "²": r"\textsuperscript{2}",
    "λ": r"$\lambda$",
    "…": r"\ldots{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def markdown(document: Document) -> str:
    """Return the report as Markdown; figures lie in `figures/` beside it."""
    parts = [f"# {document.title}", document.made]
    for section in document.sections:
        parts.append(f"## {section.title}")
        parts += [_markdown_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case Text(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Table():
            lines = [block.header, ["---"] * len(block.header), *block.rows]
            cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
            return f"{block.caption}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in cells)
        case Figure():
            return f"![{block.caption}](figures/{block.name}.svg)\n\n{block.caption}"
        case Media():
            return f"{block.caption}: `{block.path}`"
        case Commands(lines):
            return "```bash\n" + "\n".join(lines) + "\n```"


def as_data(document: Document) -> dict[str, Any]:
    """Return texts and tables as JSON holds them; figures and media stay in their files."""
    return {
        "title": document.title,
        "made": document.made,
        "sections": {
            section.title: [one for block in section.blocks if (one := _block_data(block))]
            for section in document.sections
        },
    }


def _block_data(block: Block) -> dict[str, Any] | str | list[str] | None:
    match block:
        case Text(text):
            return text
        case Bullets(items):
            return list(items)
        case Table(name, caption, header, rows):
            cells = [dict(zip(header, row, strict=True)) for row in rows]
            return {"name": name, "caption": caption, "rows": cells}
    return None


def latex(table: Table) -> str:
    r"""Return a table for `\usepackage{booktabs}`, to be pulled in with `\input`."""
    rows = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize",
            rf"\caption{{{_escaped(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.header)}}}",
            r"\toprule",
            " & ".join(_escaped(cell) for cell in table.header) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def csv_text(header: Iterable[str], rows: Iterable[Iterable[Cell]]) -> str:
    """Return numbers as CSV; what is not there stays empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


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
