"""What a file of labels is like as a whole: coverage, errors, repetitions, lengths, words."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from coc_vla.events.instruction_objects import words_of
from coc_vla.labels.record import CocLabel, LabelScan, error_kind
from coc_vla.labels.trace import ParsedTrace, trace_faults

NUM_LISTED = 20
NUM_WORDS = 25
# Words that every text has say nothing about its subject.
_STOP_TEXT = (
    "a an the of to and or in on at it its is are be so that this with for as by from can will has "
    "have"
)
STOP_WORDS = frozenset(words_of(_STOP_TEXT))


def label_report(scan: LabelScan, episodes: Collection[int] | None) -> dict[str, Any]:
    """Return everything that is counted about a file of labels.

    Args:
        scan: the file.
        episodes: the dataset's, None where the dataset is not looked at.
    """
    records = [record for _, record in sorted(scan.records.items())]
    labels = [record for record in records if record.is_label]
    tokens = [record.tokens for record in records if record.tokens is not None]
    origins = Counter((label.backend, label.model_name, label.prompt_sha256) for label in labels)
    return {
        "lines": {
            "num_lines": scan.num_lines,
            "num_superseded": scan.num_superseded,
            "damaged": [
                {"line": line.number, "reason": line.reason, "is_torn": line.is_torn}
                for line in scan.damaged[:NUM_LISTED]
            ],
            "num_damaged": len(scan.damaged),
        },
        "coverage": _coverage(records, labels, episodes),
        "errors": _errors(records),
        "invalid": _invalid(labels),
        "duplicates": _duplicates(scan, labels),
        # Several entries are a mixture.
        "origins": [
            {"backend": backend, "model_name": model, "prompt_sha256": prompt, "num_labels": count}
            for (backend, model, prompt), count in origins.most_common()
        ],
        "lengths": _lengths(labels),
        "words": _words(labels),
        "effort": {
            "seconds_per_episode": _distribution([record.seconds for record in records]),
            "attempts_per_episode": _distribution([record.attempts for record in records]),
            "tokens_per_episode": _distribution(tokens),
        },
    }


def _coverage(
    records: Sequence[CocLabel], labels: Sequence[CocLabel], episodes: Collection[int] | None
) -> dict[str, Any]:
    known = None if episodes is None else set(episodes)
    labelled = {label.episode_id for label in labels}
    found = {record.episode_id for record in records}
    return {
        "num_labels": len(labels),
        "num_errors": len(records) - len(labels),
        "num_episodes": None if known is None else len(known),
        "share": None if not known else len(labelled & known) / len(known),
        "num_without_line": None if known is None else len(known - found),
        "without_line": [] if known is None else sorted(known - found)[:NUM_LISTED],
        "not_in_dataset": [] if known is None else sorted(found - known)[:NUM_LISTED],
    }


def _errors(records: Sequence[CocLabel]) -> dict[str, Any]:
    """Return how often each kind of error is there, and an episode that has it."""
    kinds = [(error_kind(record.error), record.episode_id) for record in records if record.error]
    # The first episode of a kind is the one that stays.
    example = dict(reversed(kinds))
    counts = Counter(kind for kind, _ in kinds).most_common(NUM_LISTED)
    return {kind: {"count": count, "episode": example[kind]} for kind, count in counts}


def _invalid(labels: Sequence[CocLabel]) -> dict[str, Any]:
    """Check every label again: a file may be older than the checks, or made by something else."""
    found = {}
    for label in labels:
        numbers = tuple(range(1, len(label.coc_text) + 1))
        if faults := trace_faults(ParsedTrace(numbers, label.coc_text), label.instruction):
            found[str(label.episode_id)] = faults
    return {"num_labels": len(found), "episodes": dict(list(found.items())[:NUM_LISTED])}


def _duplicates(scan: LabelScan, labels: Sequence[CocLabel]) -> dict[str, Any]:
    """Count texts that several episodes share word for word, and repeated episodes."""
    texts = Counter(label.coc_text for label in labels)
    shared = {text: count for text, count in texts.items() if count > 1}
    by_task = {(label.instruction, label.coc_text) for label in labels}
    largest = max(shared, key=lambda text: shared[text], default=None)
    return {
        "episodes_with_several_labels": list(scan.repeated[:NUM_LISTED]),
        "num_distinct_texts": len(texts),
        "num_distinct_texts_and_instructions": len(by_task),
        "num_labels_with_shared_text": sum(shared.values()),
        "largest_group": None
        if largest is None
        else {
            "count": shared[largest],
            "episodes": [label.episode_id for label in labels if label.coc_text == largest][:5],
        },
    }


def _lengths(labels: Sequence[CocLabel]) -> dict[str, Any]:
    steps = [step for label in labels for step in label.coc_text]
    counts = [len(label.coc_text) for label in labels]
    return {
        "steps_per_label": _distribution(counts),
        "num_labels_by_steps": {str(n): number for n, number in sorted(Counter(counts).items())},
        "words_per_what": _distribution([len(step.what.split()) for step in steps]),
        "words_per_why": _distribution([len(step.why.split()) for step in steps]),
    }


def _words(labels: Sequence[CocLabel]) -> dict[str, Any]:
    """Return the vocabulary: how rich it is, and what is said most."""
    steps = [step for label in labels for step in label.coc_text]
    words = Counter(word for step in steps for word in words_of(f"{step.what} {step.why}"))
    beginnings = Counter(word for step in steps for word in words_of(step.what)[:1])
    telling = Counter({word: n for word, n in words.items() if word not in STOP_WORDS})
    return {
        "num_words": words.total(),
        "num_distinct": len(words),
        "most_frequent": dict(telling.most_common(NUM_WORDS)),
        "first_words_of_steps": dict(beginnings.most_common(NUM_WORDS)),
    }


def _distribution(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, median, high = np.percentile(values, [5, 50, 95]).tolist()
    return {
        "mean": float(np.mean(values)),
        "min": float(min(values)),
        "p5": low,
        "median": median,
        "p95": high,
        "max": float(max(values)),
    }
