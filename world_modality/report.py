"""The verdict: from the folders of runs to a page that says what they show, and no more.

<out_dir>/report.html          one page, figures and films inside it
<out_dir>/report.md            the same as Markdown
<out_dir>/figures/             each figure as SVG, with the numbers it draws as CSV
<out_dir>/tables/              each table as LaTeX and CSV
"""

import datetime
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from world_modality.system.atomic import replacing
from world_modality.system.cli import TOP, run_cli
from world_modality.system.errors import InvalidInputError
from world_modality.verdict.document import (
    Document,
    Figure,
    Section,
    Table,
    csv_text,
    latex,
    markdown,
)

TITLE = "Is the world a modality?"


@dataclass(frozen=True)
class ReportConfig:
    """Compare training runs and their rollouts, and write the report."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders to look through: log_dirs, folders of rollouts and of token analyses, or a folder
    that holds them."""
    out_dir: Path = Path("report")
    """Receives the report; what an earlier one left there is replaced."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InvalidInputError(
                "name at least one folder: python -m world_modality.report RUNS"
            )


def run(config: ReportConfig) -> Document:
    """Write the report and return it.

    Raises:
        InvalidInputError: none of the folders holds a finished and evaluated run.
    """
    from world_modality.verdict.document import html_page

    document = build_document(config.runs)
    _write(config.out_dir / "report.html", html_page(document).encode())
    _write(config.out_dir / "report.md", markdown(document).encode())
    for block in document.blocks():
        if isinstance(block, Table):
            folder = config.out_dir / "tables"
            _write(folder / f"{block.name}.tex", latex(block).encode())
            _write(folder / f"{block.name}.csv", csv_text(block.header, block.rows).encode())
        elif isinstance(block, Figure):
            folder = config.out_dir / "figures"
            _write(folder / f"{block.name}.svg", block.svg)
            _write(folder / f"{block.name}.csv", csv_text(block.header, block.rows).encode())
    print(markdown(Document(document.title, document.made, document.sections[:1])))
    print(f"report: {config.out_dir / 'report.html'}")
    return document


def build_document(runs: tuple[Path, ...]) -> Document:
    """Read, compare, and put the sections together.

    Raises:
        InvalidInputError: none of the folders holds a finished and evaluated run.
    """
    from world_modality.verdict.evidence import collect_evidence
    from world_modality.verdict.findings import Findings
    from world_modality.verdict.sections.codebook import codebook_section, offline_online_section
    from world_modality.verdict.sections.contrast import (
        contrast_section,
        main_section,
        settings_section,
    )
    from world_modality.verdict.sections.corruption import corruption_section
    from world_modality.verdict.sections.learning import curves_section, token_section
    from world_modality.verdict.sections.media import media_section
    from world_modality.verdict.sections.reproduction import (
        left_out_section,
        method_section,
        reproduction_section,
    )
    from world_modality.verdict.sections.success import success_section
    from world_modality.verdict.sections.verdict import scope_section, verdict_section

    findings = Findings.of(collect_evidence(runs))
    sections: list[Section | None] = [
        verdict_section(findings),
        scope_section(findings),
        main_section(findings),
        contrast_section(findings),
        success_section(findings),
        corruption_section(findings),
        token_section(findings),
        curves_section(findings),
        codebook_section(findings),
        offline_online_section(findings),
        settings_section(findings),
        media_section(findings),
        left_out_section(findings),
        reproduction_section(findings),
        method_section(),
    ]
    return Document(TITLE, _made(), tuple(section for section in sections if section is not None))


def _made() -> str:
    """Return the one line that two reports of the same inputs may differ in."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine = f"{platform.machine()} {platform.system()}, Python {platform.python_version()}"
    git = ["git", f"--git-dir={TOP / '.git'}", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"Made {now} on {machine}."
    commit = done.stdout.strip()
    return f"Made {now} on {machine}" + (f", commit {commit}." if commit else ".")


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


def main() -> None:
    """Write the report from the command line."""
    run_cli(ReportConfig, run)


if __name__ == "__main__":
    main()
