"""Signals that ask a training to end, without losing the step that is under way."""
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
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


class Stopped(KeyboardInterrupt):
    """Somebody asked the program to end.

    Attributes:
        status: 128 and the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f'stopped by {signal.Signals(number).name}')
        self.status = 128 + number


@contextmanager
def stopping() -> Iterator[None]:
    """Have SIGINT and SIGTERM raise :class:`Stopped` in what runs within, so that its processes are ended with it."""
    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
