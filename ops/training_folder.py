"""A folder that is written as a training writes it, by a writer that knows each of its states."""

import hashlib
import json
import random
from pathlib import Path

from ops.atomic import PARTIAL_SUFFIX
from ops.folder_scan import scan_folder

_CHECKPOINTS_HERE = 3


class Writer:
    """Writes a folder as a training does, and knows each state that it ever had.

    Args:
        folder: what is written.
        rng: decides the content.
        checkpoint_bytes: size of a checkpoint.
    """

    def __init__(self, folder: Path, rng: random.Random, checkpoint_bytes: int) -> None:
        self.folder = folder
        self._rng = rng
        self._checkpoint_bytes = checkpoint_bytes
        self._epoch = 0
        self.states: list[dict[str, str]] = []
        folder.mkdir(parents=True)
        self._publish("config.json", b'{"seed": 0}\n')

    def step(self) -> None:
        """Log some lines, write a checkpoint, point to it, and now and then remove an old one."""
        lines = [
            json.dumps({"epoch": self._epoch, "line": line}) + "\n"
            for line in range(self._rng.randrange(1, 40))
        ]
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            log.write("".join(lines))
        self._note()
        checkpoint = self._rng.randbytes(self._checkpoint_bytes)
        self._publish(f"model_epoch{self._epoch}.pt", checkpoint)
        self._publish("latest.json", json.dumps({"epoch": self._epoch}).encode())
        (self.folder / f"half{PARTIAL_SUFFIX}").write_bytes(b"half")
        if self._epoch >= _CHECKPOINTS_HERE:
            (self.folder / f"model_epoch{self._epoch - _CHECKPOINTS_HERE}.pt").unlink()
            self._note()
        self._epoch += 1

    def _note(self) -> None:
        self.states.append(checksums(self.folder))

    def _publish(self, name: str, content: bytes) -> None:
        partial = self.folder / (name + PARTIAL_SUFFIX)
        partial.write_bytes(content)
        partial.replace(self.folder / name)
        self._note()


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all files that travel, by path."""
    return {
        path: hashlib.sha256((folder / path).read_bytes()).hexdigest()
        for path in scan_folder(folder).files
    }
