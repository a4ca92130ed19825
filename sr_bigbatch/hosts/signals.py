"""Signals that ask a training to end, without losing the step that is under way."""
from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from sr_bigbatch.system import STOP_SIGNALS


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
        self._before = {number: signal.signal(number, self._take) for number in STOP_SIGNALS}
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
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # a second one must not disturb the way out
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
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
