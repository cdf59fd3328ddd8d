"""Where recorded attempts wait until the dataset is assembled; why a recording can be interrupted.

    <folder>/recipe.json                    what the recording is made of
    <folder>/<task>/attempt_00003.npz       a solved attempt (see `DemoEpisode.save`)
    <folder>/<task>/attempt_00004.failed    an attempt that did not solve the task (empty)

A file is whole or not there, and its name depends on the task and the attempt's number alone: it
does not matter which process recorded it, nor when.
"""

import shutil
from pathlib import Path

from benchmarks.demos.episode import DemoEpisode
from benchmarks.demos.recipe import Recipe, read_sections, refuse_other_recipe
from world_modality.system.atomic import replacing, write_json
from world_modality.system.output_lock import OutputLock


class DemoStaging:
    """A folder of attempts made by one recipe. It is plain data: worker processes get a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lock(self) -> OutputLock:
        """Return the lock of the folder, which lies in it and goes with it."""
        return OutputLock(self.folder, "--dataset_root")

    def begin(self, recipe: Recipe) -> None:
        """Begin a recording, or go on with one that the same recipe began.

        Raises:
            InvalidInputError: another recipe began it (the message names what differs), or its
                file is damaged.
        """
        recipe_path = self.folder / "recipe.json"
        if recipe_path.exists():
            refuse_other_recipe(read_sections(recipe_path), recipe, self.folder)
        else:
            write_json(recipe_path, dict(recipe))

    def clear(self) -> None:
        """Delete what the folder holds, the recipe last: what is left is never without one."""
        for folder in self.folder.glob("*/"):
            shutil.rmtree(folder)
        (self.folder / "recipe.json").unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder if it is there."""
        if self.folder.exists():
            self.clear()
            shutil.rmtree(self.folder)

    def save(self, task: str, attempt: int, episode: DemoEpisode | None) -> None:
        """Write an attempt's outcome; None stands for a failed attempt."""
        stem = self._stem(task, attempt)
        if episode is None:
            with replacing(stem.with_suffix(".failed")) as partial:
                partial.touch()
        else:
            episode.save(stem.with_suffix(".npz"))

    def load(self, task: str, attempt: int) -> DemoEpisode:
        """Read a solved attempt."""
        return DemoEpisode.load(self._stem(task, attempt).with_suffix(".npz"))

    def outcomes(self, task: str) -> dict[int, bool]:
        """Return the finished attempts of a task: number to whether it solved the task."""
        folder = self.folder / task
        solved = {_attempt_number(path): True for path in folder.glob("attempt_*.npz")}
        failed = {_attempt_number(path): False for path in folder.glob("attempt_*.failed")}
        return solved | failed

    def _stem(self, task: str, attempt: int) -> Path:
        return self.folder / task / f"attempt_{attempt:05d}"


def _attempt_number(path: Path) -> int:
    return int(path.stem.removeprefix("attempt_"))
