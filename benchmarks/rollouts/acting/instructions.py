"""What policies are told in the control that asks whether they listen."""

import dataclasses
from collections.abc import Sequence

from benchmarks.rollouts.suite import EpisodeSpec
from world_modality.system.errors import InvalidInputError


def with_wrong_instructions(episodes: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
    """Give each task's episodes the instruction of the next task that is told something else.

    Raises:
        InvalidInputError: all tasks are told the same.
    """
    told = {episode.task: episode.instruction for episode in episodes}
    texts = list(told.values())
    if len(set(texts)) < 2:
        raise InvalidInputError(
            "--wrong_instruction tells each task another selected task's instruction, but all "
            f"selected tasks are told {texts[0]!r}; select more of them with --tasks"
        )
    wrong: dict[str, str] = {}
    for position, (task, right) in enumerate(told.items()):
        following = texts[position + 1 :] + texts[:position]
        wrong[task] = next(text for text in following if text != right)
    return [dataclasses.replace(episode, instruction=wrong[episode.task]) for episode in episodes]
