"""Whether enough episodes are held out for the intervals of the later stages to say something."""

import math
from collections.abc import Mapping

import numpy as np

from world_modality.source.episodes import Episodes, Split

# Intervals are drawn over held-out episodes; a task needs two of them to show a spread.
MIN_EPISODES = 10
MIN_EPISODES_PER_TASK = 2
# With a larger share held out there is too little left to train on.
MAX_FRACTION = 0.5
SHOWN_TASKS = 3


def held_out_by_task(episodes: Episodes, split: Split) -> dict[int, int]:
    """Return how many episodes of each task are held out for validation."""
    is_held_out = np.isin(episodes.ids, np.asarray(split.val, dtype=np.int64))
    tasks, place = np.unique(episodes.tasks, return_inverse=True)
    counts = np.bincount(place[is_held_out], minlength=len(tasks))
    return dict(zip(tasks.tolist(), counts.tolist(), strict=True))


def validation_advice(episodes: Episodes, split: Split, texts: Mapping[int, str]) -> list[str]:
    """Say in words where too few episodes are held out, and what to do; nothing where all is well.

    Args:
        episodes: all of the dataset.
        split: which of them are held out.
        texts: of the tasks.
    """
    held_out = held_out_by_task(episodes, split)
    few = [task for task, count in held_out.items() if count < MIN_EPISODES_PER_TASK]
    total, found = sum(held_out.values()), []
    if total < MIN_EPISODES:
        found.append(
            f"validation episodes: {total}, fewer than {MIN_EPISODES} (--val_fraction of "
            f"{len(episodes)})"
        )
    if few:
        shown = [repr(texts[task]) for task in few[:SHOWN_TASKS]]
        found.append(
            f"{len(few)} of {len(held_out)} tasks have fewer than {MIN_EPISODES_PER_TASK} "
            f"validation episodes ({', '.join(shown)}{', …' if len(few) > SHOWN_TASKS else ''})"
        )
    if not found:
        return []
    return [f"{'; '.join(found)}: intervals over them resolve nothing; {_remedy(episodes)}"]


def _remedy(episodes: Episodes) -> str:
    _, num_episodes = np.unique(episodes.tasks, return_counts=True)
    fraction = max(MIN_EPISODES / len(episodes), MIN_EPISODES_PER_TASK / num_episodes.min())
    # Up to the next 0.05: a task gives its share rounded down or up.
    advised = math.ceil(fraction * 20 - 1e-9) / 20
    if advised > MAX_FRACTION:
        return "record more episodes, or join tasks"
    return (
        f"give --val_fraction {advised:g} (frames are embedded again only where the encoder is "
        "fitted to training frames), or record more episodes"
    )
