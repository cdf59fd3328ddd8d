"""A torch archive that carries its own SHA-256, so that no flipped byte is used unnoticed.

What `torch.save` writes is a ZIP file. Torch checks none of its checksums: a flipped bit in a
weight loads as another weight. Here the file's SHA-256 becomes the archive's comment, so that the
digest cannot be parted from what it vouches for; other programs' `torch.load` reads the file as
before.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import IO, Any, cast

import torch

from world_modality.system.errors import InvalidInputError

# A ZIP file ends with the length of its comment (two bytes, little-endian), then the comment.
_LENGTH_BYTES = 2
_COMMENT = re.compile(rb"sha256:[0-9a-f]{64}")
_COMMENT_BYTES = len("sha256:") + 64
_BLOCK_BYTES = 2**20


class _SealedWriter:
    """A file that `torch.save` writes to; `seal` then adds the digest of what was written.

    Args:
        file: open for writing, at its beginning.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        # The archive's last bytes are replaced by `seal`, so they are not part of the digest.
        self._held_back = b""

    def write(self, content: bytes | memoryview) -> int:
        """Append to the archive."""
        if len(content) >= _LENGTH_BYTES:
            self._digest.update(self._held_back)
            self._digest.update(content[:-_LENGTH_BYTES])
            self._held_back = bytes(content[-_LENGTH_BYTES:])
        else:
            seen = self._held_back + bytes(content)
            self._digest.update(seen[:-_LENGTH_BYTES])
            self._held_back = seen[-_LENGTH_BYTES:]
        return self._file.write(content)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()

    def seal(self) -> None:
        """Write the digest as the archive's comment.

        Raises:
            ValueError: what was written is no ZIP file without a comment.
        """
        if self._held_back != bytes(_LENGTH_BYTES):
            raise ValueError(f"expected an archive without a comment, got {self._held_back!r}")
        self._file.seek(-_LENGTH_BYTES, os.SEEK_END)
        comment = f"sha256:{self._digest.hexdigest()}".encode()
        self._file.write(len(comment).to_bytes(_LENGTH_BYTES, "little") + comment)


def save_sealed(content: Any, file: IO[bytes]) -> None:
    """Do what `torch.save` does, and add the digest.

    Args:
        content: tensors and plain values.
        file: open for writing, at its beginning.

    Raises:
        OSError: the disk is full or gone.
    """
    writer = _SealedWriter(file)
    try:
        torch.save(content, cast("IO[bytes]", writer))  # of which torch uses two methods
        writer.seal()
    except RuntimeError as error:
        # torch covers a failed write ("no space left") with its own "unexpected pos 64 vs 0".
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def require_intact(file: IO[bytes], path: Path) -> None:
    """Check an archive against the digest that it carries; the file is at its beginning afterwards.

    Args:
        file: open for reading.
        path: its name, for messages.

    Raises:
        InvalidInputError: it has no digest, or another one.
    """
    size = file.seek(0, os.SEEK_END)
    covered = size - _COMMENT_BYTES - _LENGTH_BYTES
    file.seek(max(covered, 0))
    tail = file.read()
    length, comment = tail[:_LENGTH_BYTES], tail[_LENGTH_BYTES:]
    expected_length = _COMMENT_BYTES.to_bytes(_LENGTH_BYTES, "little")
    if covered < 0 or length != expected_length or not _COMMENT.fullmatch(comment):
        raise InvalidInputError(
            f"{path} is damaged or not a checkpoint of this project: it does not end with its "
            "SHA-256; use an earlier checkpoint, or train again"
        )
    file.seek(0)
    digest = hashlib.sha256()
    while covered > 0:
        block = file.read(min(_BLOCK_BYTES, covered))
        digest.update(block)
        covered -= len(block)
    if f"sha256:{digest.hexdigest()}".encode() != comment:
        raise InvalidInputError(
            f"{path} is damaged: its content does not have the SHA-256 that it ends with; use an "
            "earlier checkpoint, or train again"
        )
    file.seek(0)
