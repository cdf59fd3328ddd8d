"""What can be looked at: frames that share a token, and films of rollouts."""

from pathlib import Path

from world_modality.verdict.document import Block, Media, Section, Text
from world_modality.verdict.findings import Findings

MAX_FILMS = 6
MAX_FILM_BYTES = 3_000_000
MAX_GRIDS = 2


def media_section(findings: Findings) -> Section | None:
    """Return None where there is nothing to look at."""
    sources = findings.evidence.sources
    blocks: list[Block] = []
    for path in sources.grids[:MAX_GRIDS]:
        caption = (
            f"Frames that share a world token, one row a token ({path.parent.name}); do they show "
            "the same thing?"
        )
        blocks.append(Media(caption, "image/jpeg", path.read_bytes(), str(path)))
    fitting = [path for path in sources.films if path.stat().st_size <= MAX_FILM_BYTES]
    shown = _spread(fitting)
    for path in shown:
        blocks.append(Media(_caption(path), "video/mp4", path.read_bytes(), str(path)))
    if not blocks:
        return None
    if len(shown) < len(sources.films):
        rest = len(sources.films) - len(shown)
        blocks.append(
            Text(
                f"{rest} more films are not on this page (at most {MAX_FILMS}, of at most "
                f"{MAX_FILM_BYTES // 1_000_000} MB each); they lie beside the rollouts."
            )
        )
    return Section("Tokens and rollouts to look at", tuple(blocks))


def _spread(films: list[Path]) -> list[Path]:
    """Take films of as many checkpoints and tasks as there is room for, in turn."""
    by_checkpoint: dict[Path, dict[str, list[Path]]] = {}
    for film in films:
        tasks = by_checkpoint.setdefault(film.parents[1], {})
        tasks.setdefault(film.parent.name, []).append(film)
    taken: list[Path] = []
    while len(taken) < MAX_FILMS and by_checkpoint:
        for checkpoint in sorted(by_checkpoint):
            tasks = by_checkpoint[checkpoint]
            shown = [film.parent.name for film in taken]
            task = min(tasks, key=lambda name: (shown.count(name), name))
            if len(taken) < MAX_FILMS:
                taken.append(tasks[task].pop(0))
            if not tasks[task]:
                del tasks[task]
            if not tasks:
                del by_checkpoint[checkpoint]
    return taken


def _caption(film: Path) -> str:
    """Name run, checkpoint, task and outcome: RUN/rollouts/videos/CHECKPOINT/TASK/EPISODE.mp4."""
    run, checkpoint, task = film.parents[4].name, film.parents[1].name, film.parent.name
    return f"{run}, {checkpoint}, {task}: {film.stem.replace('_', ' ')}"
