"""The progress bar of a checkpoint's rollouts."""

import sys
from types import TracebackType

from tqdm import tqdm

from benchmarks.rollouts.loop import Outcome


class Progress:
    """Shows how many episodes are done and how they ended.

    Attributes:
        num_steps: environment steps of the outcomes shown so far.
    """

    def __init__(self, label: str, num_done: int, num_episodes: int) -> None:
        self.num_steps = 0
        self._label = label
        self._num_solved = self._num_failed = self._num_errors = 0
        self._bar = tqdm(total=num_episodes, initial=num_done, desc=label, unit="episode")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def show(self, outcome: Outcome) -> None:
        """Count an episode that has ended; name it if it was in an error."""
        self.num_steps += outcome.num_steps
        if outcome.error is not None:
            self._num_errors += 1
            name = f"{outcome.episode.task} episode {outcome.episode.episode}"
            self.say(f"{self._label}: error in {name}: {outcome.error.splitlines()[0]}")
        elif outcome.success:
            self._num_solved += 1
        else:
            self._num_failed += 1
        text = f"solved {self._num_solved}/{self._num_solved + self._num_failed}"
        if self._num_errors:
            text += f", errors {self._num_errors}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._bar.write(message, file=sys.stderr)
