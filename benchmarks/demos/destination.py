"""The folders of one recording: the dataset, its unfinished form, and the staged attempts.

    <root>                                        the finished dataset, or nothing
    <root>.partial                                a dataset under construction; never read
    <root>.staging/recipe.json                    what the recording is made of
    <root>.staging/<task>/attempt_00003.npz       a solved attempt (see `DemoEpisode.save`)
    <root>.staging/<task>/attempt_00004.failed    an attempt that did not solve the task (empty)

Attempts wait there until the dataset is finished, which is why a recording can be interrupted. An
attempt's file is whole or not there, and its name depends on the task and the attempt's number
alone: it does not matter which process recorded it, nor when.
"""

import os
import shutil
from pathlib import Path

from benchmarks.demos.episode import DemoEpisode
from benchmarks.demos.recording import Recipe, read_recipe, require_same_recipe
from world_modality.source.lerobot_format import INFO_PATH, RECORDING_PATH
from world_modality.system.atomic import partial_path, publish, replacing, sync_file, write_json
from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock


class DemoStaging:
    """A folder of attempts made by one recipe. It is plain data: worker processes get a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lock(self) -> OutputLock:
        """Return the lock of the folder, which lies in it and goes with it."""
        return OutputLock(self.folder, "--dataset_root")

    def begin(self, recipe: Recipe) -> None:
        """Begin a recording, or continue one that the same recipe began.

        Raises:
            InvalidInputError: another recipe began it (the message names what differs), or its
                file is damaged.
        """
        recipe_path = self.folder / "recipe.json"
        if recipe_path.exists():
            require_same_recipe(read_recipe(recipe_path), recipe, self.folder)
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
        return {
            int(path.stem.removeprefix("attempt_")): path.suffix == ".npz"
            for path in (self.folder / task).glob("attempt_*")
            if path.suffix in (".npz", ".failed")
        }

    def _stem(self, task: str, attempt: int) -> Path:
        return self.folder / task / f"attempt_{attempt:05d}"


class DemoDestination:
    """Where a recording goes."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.partial = partial_path(self.root)
        self.staging = DemoStaging(self.root.with_name(self.root.name + ".staging"))

    def holds_dataset_of(self, recipe: Recipe) -> bool:
        """Tell whether the finished dataset of this recipe is there.

        Raises:
            InvalidInputError: something else is there; the message says what.
        """
        if self._is_free():
            return False
        if not (self.root / RECORDING_PATH).exists():
            raise InvalidInputError(
                f"{self.root} exists and was not recorded by this project; choose another "
                "--dataset_root"
            )
        require_same_recipe(read_recipe(self.root / RECORDING_PATH), recipe, self.root)
        return True

    def remove_dataset(self) -> None:
        """Delete the finished dataset if there is one.

        Raises:
            InvalidInputError: the folder holds no LeRobot dataset, and is left alone.
        """
        if self._is_free():
            return
        if not (self.root / INFO_PATH).exists():
            raise InvalidInputError(
                f"{self.root} holds no LeRobot dataset, and --overwrite deletes nothing else"
            )
        self.remove_partial()
        # Renamed first: an interruption leaves no half-deleted dataset under the name.
        os.replace(self.root, self.partial)
        self.remove_partial()

    def remove_partial(self) -> None:
        """Delete a dataset under construction if there is one."""
        if self.partial.exists():
            shutil.rmtree(self.partial)

    def publish(self) -> None:
        """Give the constructed dataset its final name once every file is on the disk."""
        for path in self.partial.rglob("*"):
            sync_file(path)
        publish(self.partial, self.root)

    def _is_free(self) -> bool:
        return not self.root.exists() or not any(self.root.iterdir())
