"""The prompt file: what a model is asked, and what it is told when its answer was refused."""

import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from world_modality.system.errors import InvalidInputError, MissingFileError

DEFAULT_PROMPT_PATH = Path(__file__).parents[1] / "prompts" / "coc_v1.txt"
RETRY_LINE = "--- retry ---"
FIRST_PLACEHOLDERS = frozenset({"instruction", "num_frames", "frame_times"})
RETRY_PLACEHOLDERS = frozenset({"previous_answer", "faults"})
# A refused answer is quoted back up to here; a model that rambles would fill its own context.
MAX_QUOTED_CHARS = 4_000


@dataclass(frozen=True)
class Prompt:
    """A prompt file: the question, what is added after a refused answer, and the file's hash.

    Every label carries the hash. The placeholders are `FIRST_PLACEHOLDERS`, `RETRY_PLACEHOLDERS`.
    """

    first: string.Template
    retry: string.Template
    sha256: str

    @classmethod
    def read(cls, path: Path = DEFAULT_PROMPT_PATH) -> "Prompt":
        """Read a prompt file: the question, a line `--- retry ---`, what a retry adds.

        Raises:
            MissingFileError: no such file.
            InvalidInputError: no text, no retry part, an unknown placeholder, or no
                `$instruction`.
        """
        if not path.is_file():
            raise MissingFileError(f"--prompt_file {path}: no such file")
        content = path.read_bytes()
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"--prompt_file {path} is not UTF-8: {error}") from error
        parts = text.split(f"\n{RETRY_LINE}\n")
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise InvalidInputError(
                f"--prompt_file {path}: expected the question, one line '{RETRY_LINE}', and what "
                f"is added when an answer was refused; see {DEFAULT_PROMPT_PATH}"
            )
        first = _template(parts[0], FIRST_PLACEHOLDERS, {"instruction"}, path)
        retry = _template(parts[1], RETRY_PLACEHOLDERS, {"faults"}, path)
        return cls(first, retry, hashlib.sha256(content).hexdigest())

    def question(self, instruction: str, frame_times_s: Sequence[float]) -> str:
        """Return the first question about an episode; times are from the episode's beginning."""
        times = ", ".join(f"{time:.1f} s" for time in frame_times_s)
        return self.first.substitute(
            instruction=instruction, num_frames=len(frame_times_s), frame_times=times
        ).strip()

    def question_again(self, question: str, answer: str, faults: Sequence[str]) -> str:
        """Return the question after a refused answer, with the answer and its faults."""
        told = self.retry.substitute(
            previous_answer=answer.strip()[:MAX_QUOTED_CHARS] or "(nothing)",
            faults="; ".join(faults),
        )
        return f"{question}\n\n{told.strip()}"


def _template(text: str, known: frozenset[str], needed: set[str], path: Path) -> string.Template:
    template = string.Template(text)
    listing = ", ".join(f"${name}" for name in sorted(known))
    if not template.is_valid():
        raise InvalidInputError(
            f"--prompt_file {path}: a $ that begins no placeholder; write $$ for the sign itself. "
            f"Placeholders: {listing}"
        )
    used = set(template.get_identifiers())
    if used - known or needed - used:
        wrong = sorted(used - known) or sorted(needed - used)
        problem = "unknown placeholder" if used - known else "missing placeholder"
        raise InvalidInputError(
            f"--prompt_file {path}: {problem} ${', $'.join(wrong)}; there are {listing}"
        )
    return template
