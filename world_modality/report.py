"""The verdict: from the folders of runs to a page that says what they show, and no more.

<out_dir>/report.html          one page, figures and films inside it
<out_dir>/report.md            the same as Markdown
<out_dir>/summary.md           the verdict and the tables that matter most, which are printed, too
<out_dir>/summary.json         the same as data
<out_dir>/figures/             each figure as SVG, with the numbers it draws as CSV
<out_dir>/tables/              each table as LaTeX and CSV
<out_dir>/data/                every outcome as tidy CSV, versions, and hashes of all that was read
"""

import datetime
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from world_modality.system.atomic import replacing, write_json
from world_modality.system.cli import TOP, run_cli
from world_modality.system.errors import InvalidInputError
from world_modality.verdict.document import (
    Block,
    Document,
    Figure,
    Section,
    Table,
    as_data,
    csv_text,
    html_page,
    latex,
    markdown,
)

if TYPE_CHECKING:
    from world_modality.verdict.findings import Findings

TITLE = "Is the world a modality?"
SUMMARY_TABLES = ("main", "targets", "corruption_offline", "corruption_closed_loop", "explanations")


@dataclass(frozen=True)
class ReportConfig:
    """Compare training runs and their rollouts, and write the report."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders to look through: log_dirs, folders of rollouts and of token analyses, or a folder
    that holds them."""
    out_dir: Path = Path("report")
    """Folder that receives the report; what an earlier one left there is replaced."""
    design: Path | None = None
    """Design of an experiment, `<out_dir>/design.json`, whose contrasts the page answers first."""

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
    from world_modality.verdict.tidy import tidy_files

    findings = _findings(config.runs, config.design)
    document = _document(findings)
    short = summary(document)
    _write(config.out_dir / "report.html", html_page(document))
    _write(config.out_dir / "report.md", markdown(document))
    _write(config.out_dir / "summary.md", markdown(short))
    write_json(config.out_dir / "summary.json", as_data(short))
    for block in document.blocks():
        if isinstance(block, Table):
            folder = config.out_dir / "tables"
            _write(folder / f"{block.name}.tex", latex(block))
            _write(folder / f"{block.name}.csv", csv_text(block.header, block.rows))
        elif isinstance(block, Figure):
            folder = config.out_dir / "figures"
            _write(folder / f"{block.name}.svg", block.svg)
            _write(folder / f"{block.name}.csv", csv_text(block.header, block.rows))
    for name, content in tidy_files(findings, config.design).items():
        _write(config.out_dir / "data" / name, content)
    print(markdown(short))
    print(f"report: {config.out_dir / 'report.html'}")
    return document


def build_document(runs: tuple[Path, ...], design: Path | None = None) -> Document:
    """Read, compare, and put the sections together.

    Raises:
        InvalidInputError: none of the folders holds a finished and evaluated run.
    """
    return _document(_findings(runs, design))


def _findings(runs: tuple[Path, ...], design: Path | None) -> "Findings":
    from world_modality.verdict.evidence import collect_evidence
    from world_modality.verdict.findings import Findings

    return Findings.of(collect_evidence(runs), design)


def _document(findings: "Findings") -> Document:
    from world_modality.verdict.sections.codebook import codebook_section, offline_online_section
    from world_modality.verdict.sections.contrast import (
        contrast_section,
        main_section,
        settings_section,
    )
    from world_modality.verdict.sections.corruption import corruption_section
    from world_modality.verdict.sections.explanations import explanations_section
    from world_modality.verdict.sections.learning import curves_section, token_section
    from world_modality.verdict.sections.media import media_section
    from world_modality.verdict.sections.planned import planned_section
    from world_modality.verdict.sections.reproduction import (
        left_out_section,
        method_section,
        reproduction_section,
    )
    from world_modality.verdict.sections.success import success_section
    from world_modality.verdict.sections.targets import targets_section
    from world_modality.verdict.sections.verdict import scope_section, verdict_section

    sections = [
        section(findings)
        for section in (
            verdict_section,
            planned_section,
            contrast_section,
            main_section,
            scope_section,
            success_section,
            targets_section,
            corruption_section,
            token_section,
            curves_section,
            codebook_section,
            offline_online_section,
            explanations_section,
            settings_section,
            media_section,
            left_out_section,
            reproduction_section,
            method_section,
        )
    ]
    return Document(TITLE, _made(), tuple(section for section in sections if section is not None))


def summary(document: Document) -> Document:
    """Return what is read first: the verdict, and the tables that README shows rows of."""
    verdict, *others = document.sections
    tables = [
        Section(section.title, tuple(b for b in section.blocks if _is_in_summary(b)))
        for section in others
    ]
    kept = tuple(section for section in tables if section.blocks)
    return Document(document.title, document.made, (verdict, *kept))


def _is_in_summary(block: Block) -> bool:
    return isinstance(block, Table) and block.name in SUMMARY_TABLES


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


def _write(path: Path, content: str | bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def main() -> None:
    """Write the report from the command line."""
    run_cli(ReportConfig, run)


if __name__ == "__main__":
    main()
