"""From episodes to records: ask, check the answer, ask again with the reason, or give up."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from coc_vla.authors.backends import AuthorFlags
from coc_vla.authors.prompt import Prompt
from coc_vla.authors.vlm import Vlm, VlmAnswer, VlmRequest, VlmUnavailableError
from coc_vla.labels.episode_tasks import EpisodeTask
from coc_vla.labels.record import CocLabel
from coc_vla.labels.trace import TraceStep, parse_trace, trace_faults, without_thoughts

CUT_OFF_FAULT = "the answer was cut off at the token limit; be shorter"
# A model that thinks is not told to be shorter: it would think again as long.
NOTHING_SAID = "cut off at the token limit before the answer began; raise --max_tokens"


@dataclass
class _Draft:
    """An episode between its first question and its record."""

    task: EpisodeTask
    seed: int
    question: str
    prompt: str
    attempts: int = 0
    seconds: float = 0.0
    tokens: int | None = None

    def request(self) -> VlmRequest:
        return VlmRequest(
            episode_id=self.task.episode_id,
            instruction=self.task.instruction,
            images=self.task.images,
            prompt=self.prompt,
            seed=(self.seed + self.attempts) % 2**31,
            motion=self.task.motion,
        )


@dataclass(frozen=True, kw_only=True)
class LabellingFlags(AuthorFlags):
    """How an author is asked for labels."""

    least: ClassVar[dict[str, int]] = {
        **AuthorFlags.least,
        **{"batch_size": 1, "max_retries": 0, "max_failures_in_row": 1, "seed": 0},
    }

    batch_size: int = 8
    """Episodes of a batch, for a model that runs here."""
    seed: int = 0
    """Seed of sampling; each episode's own seed is made from it."""
    max_retries: int = 2
    """How often an episode is asked for again, with the reason, after its answer was refused."""
    max_failures_in_row: int = 20
    """The run ends after this many failed requests in a row."""


@dataclass
class Labeller:
    """Turns episodes into records.

    Each episode's seed is made from `--seed` and its `episode_index`, so that its label does not
    depend on what was labelled before.
    """

    vlm: Vlm
    prompt: Prompt | None
    flags: LabellingFlags
    _failures: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def records(self, tasks: Iterable[EpisodeTask]) -> Iterator[list[CocLabel]]:
        """Yield the records of the episodes as they are finished, several at a time.

        Raises:
            VlmUnavailableError: the author is gone; what was finished is yielded before.
        """
        if self.flags.backend == "openai":
            return self._concurrently(tasks)
        return self._in_batches(tasks, self.flags.batch_size)

    def _in_batches(
        self, tasks: Iterable[EpisodeTask], batch_size: int
    ) -> Iterator[list[CocLabel]]:
        waiting = iter(tasks)
        drafts: list[_Draft] = []
        is_more = True
        while drafts or is_more:
            records: list[CocLabel] = []
            while is_more and len(drafts) < batch_size:
                task = next(waiting, None)
                if task is None:
                    is_more = False
                elif task.fault is not None:
                    records.append(self._record(self._draft(task), "", error=task.fault))
                else:
                    drafts.append(self._draft(task))
            if records:
                yield records
            if drafts:
                batch = list(drafts)
                answers = self.vlm.answer([draft.request() for draft in batch])
                judged = [self._judged(*pair) for pair in zip(batch, answers, strict=True)]
                drafts = [
                    draft for draft, record in zip(batch, judged, strict=True) if record is None
                ]
                if answered := [record for record in judged if record is not None]:
                    yield answered

    def _concurrently(self, tasks: Iterable[EpisodeTask]) -> Iterator[list[CocLabel]]:
        """Read ahead as far as twice the concurrency, so that memory is bounded."""
        concurrency = self.flags.concurrency
        running: set[Future[CocLabel]] = set()
        failure: VlmUnavailableError | None = None
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="coc_request")
        try:
            for task in tasks:
                running.add(pool.submit(self._alone, task))
                while len(running) >= 2 * concurrency:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from self._finished(done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from self._finished(done)
        except VlmUnavailableError as error:
            failure = error
        finally:
            if failure is None and not running:
                pool.shutdown()
            else:
                self.vlm.close()  # ends the waits of requests under way
                pool.shutdown(cancel_futures=True)
        if failure is not None:
            yield _whole(running)
            raise failure

    def _finished(self, done: set[Future[CocLabel]]) -> Iterator[list[CocLabel]]:
        """Yield the records before the first failure is raised."""
        yield _whole(done)
        for future in done:
            future.result()

    def _alone(self, task: EpisodeTask) -> CocLabel:
        ((record,),) = self._in_batches([task], 1)
        return record

    def _draft(self, task: EpisodeTask) -> _Draft:
        question = ""
        if self.prompt is not None:
            times = [index / task.fps for index in task.keyframe_indices]
            question = self.prompt.question(task.instruction, times)
        return _Draft(task, episode_seed(self.flags.seed, task.episode_id), question, question)

    def _judged(self, draft: _Draft, answer: VlmAnswer) -> CocLabel | None:
        """Return the record that an answer completes, None where the episode is asked again."""
        draft.attempts += 1
        draft.seconds += answer.seconds
        if answer.num_tokens is not None:
            draft.tokens = (draft.tokens or 0) + answer.num_tokens
        if answer.error is not None:
            self._count_failure(answer.error)
            return self._record(draft, answer.text, error=f"request failed: {answer.error}")
        with self._lock:
            self._failures = 0
        text = _encodable(answer.text)
        if answer.refusal is not None:
            refusal = _encodable(answer.refusal)
            return self._record(draft, answer.text, error=f"refused to answer: {refusal}")
        if answer.is_cut_off and not without_thoughts(text).strip():
            return self._record(draft, answer.text, error=NOTHING_SAID)
        trace = parse_trace(text)
        faults = trace_faults(trace, draft.task.instruction)
        if answer.is_cut_off:
            faults = [CUT_OFF_FAULT, *faults]
        if not faults:
            return self._record(draft, answer.text, steps=trace.steps)
        if draft.attempts <= self.flags.max_retries and self.prompt is not None:
            draft.prompt = self.prompt.question_again(draft.question, text, faults)
            return None
        return self._record(draft, answer.text, error=f"answer refused: {'; '.join(faults)}")

    def _count_failure(self, error: str) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= self.flags.max_failures_in_row:
                raise VlmUnavailableError(
                    f"{self._failures} requests in a row failed, the last with: {error}. What was "
                    "labelled before is kept; mend the cause and run the same command with --resume"
                )

    def _record(
        self,
        draft: _Draft,
        raw_text: str,
        *,
        steps: tuple[TraceStep, ...] = (),
        error: str | None = None,
    ) -> CocLabel:
        return CocLabel(
            episode_id=draft.task.episode_id,
            instruction=draft.task.instruction,
            keyframe_indices=draft.task.keyframe_indices,
            coc_text=steps,
            raw_text=raw_text,
            model_name=self.vlm.model_name,
            backend=self.flags.backend,
            prompt_sha256=None if self.prompt is None else self.prompt.sha256,
            seed=draft.seed,
            error=error and _encodable(error),
            seconds=round(draft.seconds, 6),
            tokens=draft.tokens,
            attempts=draft.attempts,
        )


def episode_seed(seed: int, episode_id: int) -> int:
    """Return the seed of an episode's first question, in [0, 2**31)."""
    sequence = np.random.SeedSequence([seed, episode_id])
    return int(sequence.generate_state(1)[0]) >> 1


def _encodable(text: str) -> str:
    """Replace half a surrogate pair, which can be neither printed nor sent to a server again."""
    return text.encode("utf-8", "replace").decode()


def _whole(futures: set[Future[CocLabel]]) -> list[CocLabel]:
    is_whole = (f for f in futures if f.done() and not f.cancelled() and f.exception() is None)
    return [future.result() for future in is_whole]
