"""Signals that ask a training to end, without losing the step that is under way."""
from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """As a context manager, remembers the first signal. At the second one the process leaves at once.

    Attributes:
        signal: number of the signal; 0 for none so far.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        """Begin to listen."""
        self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number


class Stopped(BaseException):
    """A signal has asked a task to end; what is under way is undone on the way out.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f'stopped by {signal.Signals(number).name}')
        self.signal = number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Have the first signal raise :class:`Stopped` in a task that has nothing to save, which cleans up on its way out."""
    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # a second one must not disturb the way out
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_task(main: Callable[[], int], what_next: str = '') -> int:
    """The exit status of a task: its own, or 128 and the number of the signal that has ended it, after one sentence.

    Args:
        main: the task.
        what_next: end of that sentence.
    """
    try:
        with stopped_by_signals():
            return main()
    except Stopped as stop:
        print(f'{stop}{what_next}', file=sys.stderr)
        return 128 + stop.signal


def leave_signals_to_parent(worker: int = 0) -> None:
    """For loader workers: a signal to the whole group must not take them from a step that is to be finished.

    Only the training process itself ends them, as it does at its exit. Where a signal's sender is not told (macOS), SIGTERM
    keeps its usual effect.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    parent = multiprocessing.parent_process()  # not os.getppid(): workers may come from a fork server
    if hasattr(signal, 'sigwaitinfo') and parent is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=[parent.pid], daemon=True).start()


def _obey(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        continue
    os._exit(0)
