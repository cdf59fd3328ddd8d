"""Which revision of a hub's model was loaded."""

from pathlib import Path


def hub_revision(name: str, requested: str | None) -> str | None:
    """Return the commit of a hub model on this disk, by where the hub's cache keeps its files.

    transformers 4 leaves it in the model's config, transformers 5 no longer does.

    Args:
        name: hub name.
        requested: the branch, tag or commit that was asked for.
    """
    from transformers.utils import cached_file

    path = cached_file(
        name,
        "config.json",
        revision=requested,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    folder = None if path is None else Path(path).parent
    return folder.name if folder is not None and folder.parent.name == "snapshots" else None
