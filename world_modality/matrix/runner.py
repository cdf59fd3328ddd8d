"""Runs jobs, several at once, each in processes of its own, and keeps what has been done."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from world_modality.matrix.jobs import Job, Step
from world_modality.system.atomic import write_json
from world_modality.system.cli import located
from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock

STAGE_END_S = 60.0
"""What a stage that is told to end may take: a training saves first."""
NUM_LAST_LINES = 12
_PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: the signal that a process gets when the thread that started it has gone."""


@dataclass(frozen=True)
class Failure:
    """A job that did not get to its end.

    Attributes:
        job: its name.
        command: the command that failed.
        code: its exit code.
        log: where all of its output is.
        last_lines: of that output.
    """

    job: str
    command: str
    code: int
    log: Path
    last_lines: tuple[str, ...]

    def __str__(self) -> str:
        lines = "\n".join(f"    {line}" for line in self.last_lines)
        return (
            f"{self.job} failed with exit code {self.code}; all of its output: {self.log}\n"
            f"  $ {self.command}\n{lines}"
        )


def is_done(job: Job) -> bool:
    """Say whether all commands of a job have ended well, and what they made is still there."""
    return not remaining(job)


def remaining(job: Job) -> list[Step]:
    """Return the commands that are still to run: from the first that is not done on."""
    done = _done_commands(job)
    for index, step in enumerate(job.steps):
        # A changed flag makes another command, and whatever follows was made from the old one.
        if step.shell not in done or not step.produces.exists():
            return list(job.steps[index:])
    return []


@dataclass
class Runner:
    """Runs jobs in at most `max_parallel` processes at a time.

    Attributes:
        max_parallel: that many jobs at once.
    """

    max_parallel: int
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, jobs: Sequence[Job]) -> list[Failure]:
        """Run what is not done of these jobs; one that fails does not stop the others.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the running commands have been told to end.
        """
        failures: list[Failure] = []
        left = [job for job in jobs if not is_done(job)]
        if len(left) < len(jobs):
            print(f"{len(jobs) - len(left)} of {len(jobs)} are done already", flush=True)
        with ThreadPoolExecutor(self.max_parallel) as pool:
            futures = [pool.submit(self._run_job, job) for job in left]
            try:
                for future in as_completed(futures):
                    failure = future.result()
                    if failure is not None:
                        failures.append(failure)
                        print(f"\n{failure}\n", flush=True)
            except KeyboardInterrupt:
                for future in futures:
                    future.cancel()
                self._stop()
                raise
        return failures

    def _run_job(self, job: Job) -> Failure | None:
        with OutputLock(job.folder, "the matrix's out_dir"):
            return self._run_steps(job)

    def _run_steps(self, job: Job) -> Failure | None:
        log_path = job.folder / "log.txt"
        for step in remaining(job):
            with self._lock:
                if self._stopping.is_set():
                    return None
                print(f"{job.name}: {step.shell}", flush=True)
            with log_path.open("ab") as log:
                log.write(f"\n$ {step.shell}\n".encode())
                log.flush()
                code = self._call(step, log.fileno())
            if self._stopping.is_set():
                return None
            if code == 0 and not step.produces.exists():
                raise InvalidInputError(
                    f"{step.shell} ended well, but there is no {step.produces}; does the matrix "
                    "send its output elsewhere?"
                )
            if code != 0:
                return Failure(job.name, step.shell, code, log_path, _last_lines(log_path))
            _record(job, step)
        print(f"{job.name}: done", flush=True)
        return None

    def _call(self, step: Step, output: int) -> int:
        cores = len(os.sched_getaffinity(0))
        threads = str(max(1, cores // self.max_parallel))
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        with self._lock:
            process = subprocess.Popen(
                [sys.executable, *located(step.arguments)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                # Ctrl-C reaches this process alone, which tells the stages to end in turn.
                start_new_session=True,
                preexec_fn=_end_with(os.getpid()) if sys.platform == "linux" else None,
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def _stop(self) -> None:
        with self._lock:
            self._stopping.set()
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(STAGE_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _end_with(parent: int) -> Callable[[], None]:
    """Return what makes a new process die when this one does, however that comes about.

    A stage that outlived a killed experiment would hold its folder when that is started again.
    """
    prctl = ctypes.CDLL(None).prctl  # looked up here: little is safe between fork and exec

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return bind


def _progress_path(job: Job) -> Path:
    return job.folder / "done.json"


def _done_commands(job: Job) -> list[str]:
    try:
        content = json.loads(_progress_path(job).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise InvalidInputError(
            f"{_progress_path(job)} is damaged ({error}); delete it, and what is done is looked at "
            "again"
        ) from error
    return list(content["commands"])


def _record(job: Job, step: Step) -> None:
    done = _done_commands(job)
    earlier = [one.shell for one in job.steps[: job.steps.index(step)] if one.shell in done]
    write_json(_progress_path(job), {"commands": [*earlier, step.shell]})


def _last_lines(path: Path) -> tuple[str, ...]:
    # A progress bar rewrites its line: what it said last is what a terminal would show.
    text = path.read_bytes().decode(errors="replace").replace("\r\n", "\n")
    lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
    return tuple(line for line in lines if line.strip())[-NUM_LAST_LINES:]
