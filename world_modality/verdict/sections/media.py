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
    left: dict[Path, list[Path]] = {}
    for film in films:
        left.setdefault(film.parents[1], []).append(film)
    taken: list[Path] = []
    while any(left.values()) and len(taken) < MAX_FILMS:
        for checkpoint in sorted(left):
            if left[checkpoint] and len(taken) < MAX_FILMS:
                shown = [film.parent.name for film in taken]
                # Of a task that is shown least, the first.
                film = min(left[checkpoint], key=lambda film: _turn(film, shown))
                left[checkpoint].remove(film)
                taken.append(film)
    return taken


def _turn(film: Path, shown: list[str]) -> tuple[int, str]:
    return shown.count(film.parent.name), film.parent.name


def _caption(film: Path) -> str:
    """Name run, checkpoint, task and outcome: RUN/rollouts/videos/CHECKPOINT/TASK/EPISODE.mp4.

    Of several checkpoints of one name the run is a folder of CHECKPOINT: RUN/train/model_B_epoch4.
    """
    checkpoint, task = film.parents[1].name, film.parent.name
    parents = [folder.name for folder in film.parents]
    videos = parents.index("videos") if "videos" in parents else 2
    run = parents[videos + 2] if videos <= 2 else parents[videos - 1]
    return f"{run}, {checkpoint}, {task}: {film.stem.replace('_', ' ')}"
