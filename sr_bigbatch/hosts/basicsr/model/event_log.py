"""What happened in the steps of a BasicSR training: in the log, in counters, in a summary."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from basicsr.utils import get_root_logger

from sr_bigbatch.step.report import KINDS, Event

_SPOKEN = 50  # events of one kind that get a line each; then only every hundredth does


class EventLog:
    """Logs events as they happen, and counts them.

    Attributes:
        counts: events so far, by kind; they survive a resume.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def take(self, iteration: int, events: Sequence[Event], files: Sequence[str] = ()) -> None:
        """Count and log the events of an iteration.

        Args:
            iteration: counted from 1.
            events: of its step.
            files: the ground-truth files of the batch, for events that concern single samples.
        """
        for event in events:
            self.counts[event.kind] += 1
            number = self.counts[event.kind]
            if number <= _SPOKEN or number % 100 == 0:
                named = [str(files[index]) for index in event.samples if index < len(files)]
                get_root_logger().warning(f'Iteration {iteration}: {event.kind} ({event.part}): {event.text}'
                                          f'{": " + ", ".join(named) if named else ""}')
            if number == _SPOKEN:
                get_root_logger().warning(f'From now on only every hundredth line about "{event.kind}".')

    def values(self) -> dict[str, float]:
        """The counters that are not zero, as values to be logged."""
        return {f'n_{kind.replace(" ", "_")}': float(self.counts[kind]) for kind in KINDS if self.counts[kind]}

    def summary(self) -> str:
        """One sentence for the end of a run."""
        if not self.counts:
            return 'No overflow, no bad input and no lack of memory in the whole run.'
        return 'In the whole run: ' + ', '.join(f'{self.counts[kind]} x {kind}' for kind in KINDS if self.counts[kind]) + '.'

    def state_dict(self) -> dict[str, int]:
        """The counters."""
        return dict(self.counts)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over counters."""
        self.counts = Counter({str(kind): int(count) for kind, count in state.items()})
