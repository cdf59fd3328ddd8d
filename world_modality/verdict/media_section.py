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
        caption = f"{path.parent.parent.name}, {path.parent.name}: {path.stem.replace('_', ' ')}"
        blocks.append(Media(caption, "video/mp4", path.read_bytes(), str(path)))
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
    by_folder: dict[Path, list[Path]] = {}
    for film in films:
        by_folder.setdefault(film.parent, []).append(film)
    taken: list[Path] = []
    while len(taken) < MAX_FILMS and any(by_folder.values()):
        for folder in sorted(by_folder):
            if by_folder[folder] and len(taken) < MAX_FILMS:
                taken.append(by_folder[folder].pop(0))
    return taken
