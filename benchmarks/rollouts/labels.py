"""What checkpoints and their results are called."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.rollouts.suite import Suite
from world_modality.system.errors import InvalidInputError


def checkpoint_labels(paths: Sequence[Path]) -> list[str]:
    """Name checkpoints by their file, with as many parent folders as it takes to be distinct.

    Raises:
        InvalidInputError: a path is given twice.
    """
    parts = [path.absolute().with_suffix("").parts[1:] for path in paths]
    for depth in range(1, max(len(one) for one in parts) + 1):
        labels = ["/".join(one[-depth:]) for one in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise InvalidInputError(
        f"--checkpoint names a file twice: {' '.join(str(path) for path in paths)}"
    )


def default_out_dir(suite: Suite, checkpoint: Path) -> Path:
    """Return the folder for results beside a checkpoint."""
    return checkpoint.parent / f"rollouts_{suite.name}_{checkpoint.stem}"
