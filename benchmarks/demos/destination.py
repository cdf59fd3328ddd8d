"""The folders of one recording: the dataset, its unfinished form, and the staged attempts.

<root>            the finished dataset, or nothing
<root>.partial    a dataset under construction; never read
<root>.staging    recorded attempts, until the dataset is finished
"""

import os
import shutil
from pathlib import Path

from benchmarks.demos.recipe import Recipe, refuse_other_recipe
from benchmarks.demos.recording import read_recipe, recording_path
from benchmarks.demos.staging import DemoStaging
from world_modality.system.atomic import partial_path, publish, sync_file
from world_modality.system.errors import InvalidInputError


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
        if not recording_path(self.root).exists():
            raise InvalidInputError(
                f"{self.root} exists and was not recorded by this project; choose another "
                "--dataset_root"
            )
        refuse_other_recipe(read_recipe(self.root), recipe, self.root)
        return True

    def remove_dataset(self) -> None:
        """Delete the finished dataset if there is one.

        Raises:
            InvalidInputError: the folder holds no LeRobot dataset, and is left alone.
        """
        if self._is_free():
            return
        if not (self.root / "meta" / "info.json").exists():
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
