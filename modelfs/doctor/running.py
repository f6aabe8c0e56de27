"""Runs checks such that none can hang another, nor the doctor.

A call on a disk or a mount that hangs cannot always be interrupted, nor can the process that
made it end. So each subject is looked at by a process of its own, forked before anything has
threads, which is left behind if need be. Inside it, each check has an alarm. The process tells
the doctor each check that it begins and each outcome, a line of JSON on a pipe; one that has said
nothing for longer than a check may take is killed.
"""

import contextlib
import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from modelfs.doctor.outcome import Outcome, Verdict, failed
from modelfs.errors import ModelfsError

CHECK_LIMIT_S = 10.0
GRACE_S = 2.0  # from a check's alarm to the end of a process that does not hear it
AT_ONCE = 16  # processes

Look = Callable[[], Outcome | Sequence[Outcome] | None]


class _TimeUp(BaseException):
    """A check's alarm: no `except Exception` on its way may take it for an answer."""


class Steps:
    """Runs the checks of one subject, one after the other, and tells what comes of them."""

    def __init__(self, tell: Callable[[dict[str, Any]], None], limit_s: float) -> None:
        self._tell = tell
        self._limit_s = limit_s

    def __call__(self, check: str, look: Look, advice: str | None = None) -> bool:
        """Run a check within its time limit; tell whether nothing of it failed.

        `advice` is what to do where it does not answer, or an OSError says it cannot; a
        ModelfsError says that itself.
        """
        self._tell({"begun": check})
        try:
            came = self._within_limit(look)
        except _TimeUp:
            came = failed(check, f"no answer in {self._limit_s:g} s", advice)
        except ModelfsError as error:
            came = failed(check, str(error))
        except OSError as error:
            where = f": {os.fsdecode(error.filename)}" if error.filename else ""
            came = failed(check, f"{error.strerror or error}{where}", advice)
        except Exception as error:
            came = failed(check, f"this check has a bug: {type(error).__name__}: {error}")
        outcomes = [came] if isinstance(came, Outcome) else list(came or ())
        for outcome in outcomes:
            self._tell({"outcome": asdict(outcome)})
        return all(outcome.verdict is not Verdict.FAILED for outcome in outcomes)

    def _within_limit(self, look: Look) -> Outcome | Sequence[Outcome] | None:
        signal.setitimer(signal.ITIMER_REAL, self._limit_s)
        try:
            return look()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@dataclass(frozen=True, slots=True)
class Subject:
    """What one process looks at; `registry` is None for what is the whole node's."""

    registry: str | None
    examine: Callable[[Steps], object]


@dataclass(eq=False)
class _Examination:
    """A process at work, or one whose work is over."""

    pid: int
    pipe: IO[bytes]
    quiet_since_s: float
    begun: str = "start"
    rest: bytes = b""
    outcomes: list[Outcome] = field(default_factory=list)
    is_over: bool = False

    def take(self, data: bytes) -> None:
        self.quiet_since_s = time.monotonic()
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self.begun = said.get("begun", self.begun)
            if outcome := said.get("outcome"):
                verdict = Verdict(outcome.pop("verdict"))
                self.outcomes.append(Outcome(**outcome, verdict=verdict))


def run(
    subjects: Sequence[Subject], limit_s: float = CHECK_LIMIT_S
) -> Iterator[tuple[Subject, list[Outcome]]]:
    """Yield the outcomes of each subject, in their order, as soon as they are known."""
    waiting, begun = list(subjects), list[_Examination]()
    with selectors.DefaultSelector() as selector:
        try:
            for number, subject in enumerate(subjects):
                while len(begun) <= number or not begun[number].is_over:
                    while waiting and len(selector.get_map()) < AT_ONCE:
                        begun.append(_begin(waiting.pop(0), limit_s))
                        selector.register(begun[-1].pipe, selectors.EVENT_READ, begun[-1])
                    _listen(selector, limit_s + GRACE_S)
                yield subject, begun[number].outcomes
        finally:
            _end([one for one in begun if not one.is_over])


def _begin(subject: Subject, limit_s: float) -> _Examination:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _examine(subject, writing, limit_s)
    os.close(writing)
    return _Examination(pid, os.fdopen(reading, "rb", buffering=0), time.monotonic())


def _examine(subject: Subject, writing: int, limit_s: float) -> None:
    """Do the work of the forked process, which ends here."""

    def tell(said: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the doctor was killed: go on to the clean-up
            os.write(writing, json.dumps(said).encode() + b"\n")

    def ring(*_: object) -> None:
        raise _TimeUp

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once: what it made is put away now
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGALRM, ring)
        signal.signal(signal.SIGINT, interrupt)
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        subject.examine(Steps(tell, limit_s))
        os._exit(0)
    finally:
        os._exit(1)


def _listen(selector: selectors.BaseSelector, quiet_max_s: float) -> None:
    """Take in what was said; end what has been quiet for too long."""
    running: list[_Examination] = [key.data for key in selector.get_map().values()]
    first_s = min(one.quiet_since_s for one in running) + quiet_max_s
    for key, _ in selector.select(max(0.0, first_s - time.monotonic())):
        one: _Examination = key.data
        if data := os.read(one.pipe.fileno(), 1 << 16):
            one.take(data)
            continue
        selector.unregister(one.pipe)
        _, status = os.waitpid(one.pid, 0)
        _close(one, "the check broke off" if status else None)
    for one in running:
        if not one.is_over and time.monotonic() - one.quiet_since_s > quiet_max_s:
            selector.unregister(one.pipe)
            _leave(one.pid)
            _close(one, f"no answer in {quiet_max_s:g} s; what comes after it was not checked")


def _close(one: _Examination, failure: str | None) -> None:
    one.pipe.close()
    one.is_over = True
    if failure is not None:
        one.outcomes.append(failed(one.begun, failure))


def _leave(pid: int) -> None:
    """Kill a process; one that cannot end is left behind, and init reaps it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for _ in range(10):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.02)


def _end(left: Sequence[_Examination]) -> None:
    """After ^C: let the processes, which were told too, put away what they made."""
    deadline_s = time.monotonic() + GRACE_S
    for one in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGINT)
    for one in left:
        while not os.waitpid(one.pid, os.WNOHANG)[0]:
            if time.monotonic() >= deadline_s:
                _leave(one.pid)
                break
            time.sleep(0.02)
        one.pipe.close()
