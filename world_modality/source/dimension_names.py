"""How a LeRobot dataset names the dimensions of a vector."""

from typing import Any


def dimension_names(names: Any, num_dims: int) -> list[str] | None:
    """Return one name for each dimension, or None where `names` does not give that.

    LeRobot leaves `names` in `meta/info.json` free. There are lists, lists within lists, lists
    under headings (`{"motors": […]}`), positions by name (`{"delta_x": 0, …}`, as its gamepads
    write), one word for the whole vector, and nothing.
    """
    flat = _flat(names)
    return flat if len(flat) == num_dims else None


def _flat(names: Any) -> list[str]:
    if isinstance(names, dict):
        if names and all(type(position) is int for position in names.values()):
            in_order = sorted(names, key=names.__getitem__)
            is_counted = [names[name] for name in in_order] == list(range(len(names)))
            return [str(name) for name in in_order] if is_counted else []
        names = list(names.values())
    if isinstance(names, list):
        return [name for part in names for name in _flat(part)]
    return [] if names is None else [str(names)]
