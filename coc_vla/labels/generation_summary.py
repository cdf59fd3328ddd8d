"""What a labelling run did: counted while it runs, printed and written when it ends."""

import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from coc_vla.labels.record import CocLabel

NUM_REASONS = 5


@dataclass
class GenerationSummary:
    """Counts of one run.

    Attributes:
        num_episodes: asked for.
        num_kept: labelled by earlier runs.
        instruction_origin: where the instructions are from.
        output_jsonl: the file of labels.
    """

    num_episodes: int
    num_kept: int
    instruction_origin: str
    output_jsonl: str
    num_labels: int = 0
    num_errors: int = 0
    num_answers: int = 0
    num_first_answers: int = 0
    num_tokens: int = 0
    num_request_retries: int = 0
    seconds: float = 0.0
    _errors: Counter[str] = field(default_factory=Counter, repr=False)
    _began: float = field(default_factory=time.monotonic, repr=False)

    @property
    def num_missing(self) -> int:
        """Episodes that the run did not come to."""
        return self.num_episodes - self.num_kept - self.num_labels - self.num_errors

    def count(self, label: CocLabel) -> None:
        """Count a record that was written."""
        self.num_answers += label.attempts
        self.num_tokens += label.tokens or 0
        if label.error is None:
            self.num_labels += 1
            self.num_first_answers += label.attempts == 1
        else:
            self.num_errors += 1
            self._errors[error_kind(label.error)] += 1

    def end(self, num_request_retries: int) -> None:
        """Stop the clock."""
        self.seconds = time.monotonic() - self._began
        self.num_request_retries = num_request_retries

    def reasons(self) -> list[tuple[str, int]]:
        """Return the commonest reasons of errors with their counts."""
        return self._errors.most_common(NUM_REASONS)

    def content(self) -> dict[str, Any]:
        """Return what the JSON says."""
        public = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return {
            **public,
            "num_missing": self.num_missing,
            "episodes_per_s": self._rate,
            "reasons": dict(self.reasons()),
        }

    @property
    def _rate(self) -> float | None:
        done = self.num_labels + self.num_errors
        return done / self.seconds if self.seconds > 0 and done else None


def error_kind(error: str) -> str:
    """Return an error without what differs between episodes: quotations and numbers."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'…'", error))[:160]


def print_summary(summary: GenerationSummary) -> None:
    """Print what was done, what was not, and why."""
    print(f"\nlabels {summary.output_jsonl}")
    print(
        f"  episodes          {summary.num_episodes}, instructions from "
        f"{summary.instruction_origin}"
    )
    print(f"  kept              {summary.num_kept} labels of earlier runs")
    print(
        f"  labelled          {summary.num_labels}, {summary.num_first_answers} of them with the "
        "first answer"
    )
    print(f"  errors            {summary.num_errors}; --resume tries them again")
    for reason, count in summary.reasons():
        print(f"    {count} × {reason}")
    if summary.num_missing:
        print(f"  not come to       {summary.num_missing}; --resume goes on with them")
    rate = summary.content()["episodes_per_s"]
    if rate is not None:
        print(
            f"  speed             {rate:.3g} episodes/s; {summary.num_answers} answers, "
            f"{summary.num_tokens} tokens, {summary.num_request_retries} requests tried again"
        )
