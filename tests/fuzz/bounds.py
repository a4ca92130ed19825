"""What holds for every mutation: an end in time, in bounded memory, and nothing written where it does not belong."""
import contextlib
import os
import resource
import signal
import warnings

SECONDS, BYTES = 10, 1 << 30
MUTATIONS = {'option values': 80, 'option texts': 40, 'saved files': 40, 'images': 40}
"""Of each kind by default; the slow suite makes ten times as many."""


class TooLong(BaseException):
    """Not an Exception: nothing that is tested may catch it."""


@contextlib.contextmanager
def bounded(*watched):
    """Fail if the block takes too long or too much memory, or changes anything under the folders ``watched``."""
    before = {folder: _names(folder) for folder in watched}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < BYTES
    assert {folder: _names(folder) for folder in watched} == before


def _too_long(*_):
    raise TooLong(f'more than {SECONDS} s')


def _names(folder):
    return {os.path.join(place, name): os.stat(os.path.join(place, name)).st_mtime_ns
            for place, _, names in os.walk(folder) for name in names}
