"""A scheduler's warning, by SIGTERM or SIGUSR1, ends a job at its next checkpoint, to be started again."""

import os
import signal
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 75  # EX_TEMPFAIL of BSD's sysexits.h: nothing is wrong, start it again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
NOTHING = "nothing kept; starts over when started again"
KEPT = "checkpoint written, going on from it when started again"


class Preempted(SystemExit):
    """The end of a job that was told to make room, with the exit code `AGAIN`; its line says what is kept.

    Where several processes do the job, `agreed` says that all of them end at this place.
    """

    def __init__(self, line: str, agreed: bool = False) -> None:
        super().__init__(AGAIN)
        self.line, self.agreed = line, agreed

    def __str__(self) -> str:
        """Return the line."""
        return self.line


class Notice:
    """Whether a job was told to end, and what it does then.

    A job without a checkpoint (`keeps` is false) ends at once, by an exception wherever it is, with the line `otherwise`. A
    job with one asks for the `signal` at its next checkpoint and ends there. A second warning changes nothing.

    Processes that do a job `together` end at the same place: what one of them has `heard` becomes the `signal` of all when
    they `agree`.
    """

    def __init__(self, otherwise: str = NOTHING, keeps: bool = False, together: bool = False) -> None:
        self.otherwise, self.keeps, self.together = otherwise, keeps, together
        self.heard = self.signal = ""  # name of the signal that came

    def give(self, name: str) -> None:
        """Take a warning.

        Raises:
            Preempted: nothing is kept.
        """
        if self.heard:
            return
        self.heard = name
        if not self.together:
            self.signal = name
            if not self.keeps:
                raise self._now()

    def agree(self) -> None:
        """Take over what one of the processes has heard, as all of them do at the same place."""
        self.signal = self.heard or "a signal to another process"

    def end(self, error: BaseException) -> Preempted | None:
        """Return the end of the job that an exception stands for, if any: an end at once may show as another's error."""
        if isinstance(error, Preempted):
            return error
        return self._now() if self.signal and not self.keeps and isinstance(error, Exception) else None

    def _now(self) -> Preempted:
        return Preempted(f"{self.signal}: {self.otherwise}")


@contextmanager
def listening(notice: Notice) -> Iterator[None]:
    """Give a notice the warnings that come within this block; outside of the main thread, where none come, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    later: list[threading.Timer] = []
    over = False

    def take(number: int, frame: FrameType | None) -> None:
        if over:
            return
        if notice.keeps or not _fragile(frame):
            notice.give(signal.Signals(number).name)
        else:
            later[:] = [threading.Timer(0.001, os.kill, (os.getpid(), number))]
            later[0].start()

    before = {number: signal.signal(number, take) for number in SIGNALS}
    try:
        yield
    finally:
        over = True
        for timer in later:
            timer.cancel()
            timer.join()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _fragile(frame: FrameType | None) -> bool:
    """Return whether an exception would be lost here, as in finalizers, or break a caller, as HDF5 below `_Sink`."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename in (weakref.__file__, __file__) and code.co_name != "listening":
            return True
        if (
            f"{os.sep}h5py{os.sep}" in code.co_filename
            or code.co_qualname.startswith("_Sink.")
            or code.co_name == "__del__"
        ):
            return True
        frame = frame.f_back
    return False
