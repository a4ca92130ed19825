"""What operating systems have in different ways, or not at all: signals, memory, locks, files that outlive a power cut."""
from __future__ import annotations

import ctypes
import errno
import importlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

STOP_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGBREAK') if hasattr(signal, name))
"""Those that ask a training to end: SIGUSR1 comes from schedulers of clusters, SIGBREAK from a console of Windows."""

_ON_WINDOWS = os.name == 'nt'
_LOCKED_BYTE = 1 << 20  # Windows lets nobody read what is locked, so this lies behind everything that is written
_UNKNOWN_MEMORY = 4 * 2**30  # bytes: a guess for systems that do not tell


def free_bytes() -> int:
    """Bytes of physical memory that are free; a part of all, or a guess, where the system does not tell."""
    if hasattr(os, 'sysconf') and 'SC_AVPHYS_PAGES' in getattr(os, 'sysconf_names', {}):
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    there = physical_bytes()  # macOS
    if there is not None:
        return there // 2
    return _free_bytes_on_windows() if _ON_WINDOWS else _UNKNOWN_MEMORY


def physical_bytes() -> int | None:
    """Bytes of physical memory; None where the system does not tell."""
    if not hasattr(os, 'sysconf') or 'SC_PHYS_PAGES' not in getattr(os, 'sysconf_names', {}):
        return None
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def peak_process_bytes() -> int:
    """Most bytes that this process has used so far; 0 where the system does not tell."""
    module = _module('resource')
    if module is None:
        return 0
    peak = int(module.getrusage(module.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == 'darwin' else peak * 1024


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, outlive a power cut; Windows keeps names by itself."""
    if _ON_WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if _ON_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> None:
    """Lock an open file for this process, until it is closed or the process is gone.

    Raises:
        OSError: EACCES or EAGAIN if another process has it, ENOSYS if the system has no locks.
    """
    posix, windows = _module('fcntl'), _module('msvcrt')
    if posix is not None:  # not `flock`: loader workers would inherit that, and outlive a killed run with it
        posix.lockf(descriptor, posix.LOCK_EX | posix.LOCK_NB)
    elif windows is not None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        windows.locking(descriptor, windows.LK_NBLCK, 1)
    else:
        raise OSError(errno.ENOSYS, 'this system has no locks')


def read_at_start(descriptor: int, most: int) -> bytes:
    """At most ``most`` bytes from the beginning of an open file."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, most)


def replace_content(descriptor: int, content: bytes) -> None:
    """Write an open file anew."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, content)


def leave_signals_to_parent(worker: int = 0) -> None:
    """For worker processes: a signal to the whole group must not take them from work that is to be finished.

    Only the process that has started them ends them, as it does at its exit. Where a signal's sender is not told (macOS,
    Windows), SIGTERM keeps its usual effect.
    """
    for number in STOP_SIGNALS:
        if number is not signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()  # not os.getppid(): workers may come from a fork server
    if hasattr(signal, 'sigwaitinfo') and hasattr(signal, 'pthread_sigmask') and parent is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=[parent.pid], daemon=True).start()


def _obey(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        continue
    os._exit(0)


def _module(name: str) -> ModuleType | None:
    """A module of Python's own library, if this system has it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class _MemoryStatus(ctypes.Structure):
    """``MEMORYSTATUSEX`` of Windows."""

    _fields_ = [('length', ctypes.c_ulong), ('load', ctypes.c_ulong), ('total', ctypes.c_ulonglong),
                ('free', ctypes.c_ulonglong), *((f'more{index}', ctypes.c_ulonglong) for index in range(5))]


def _free_bytes_on_windows() -> int:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    windows: Any = vars(ctypes).get('windll')
    told = windows is not None and windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.free) if told else _UNKNOWN_MEMORY
