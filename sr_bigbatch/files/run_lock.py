"""One run at a time in a folder."""
from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sr_bigbatch.system import lock, read_at_start, replace_content

_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MOST_BYTES = 1 << 12


class FolderInUse(RuntimeError):
    """Another run has the folder; the message says which, and what to do."""


def lock_file(folder: Path) -> Path:
    """The file that is locked: beside the folder, because that is renamed when another run of its name begins."""
    return folder.with_name(f'.{folder.name}.lock')


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Have a folder, which need not exist yet, to oneself.

    The operating system releases the lock of a process that is gone, however it went. What the file tells (process, host,
    time) is for people, and for file systems whose locks do not reach other hosts.

    Args:
        folder: of the experiment. Nothing in it is touched.

    Raises:
        FolderInUse: if another process has it, or may have it on another host.
        OSError: if the lock file cannot be written.
    """
    path = lock_file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path)
    try:
        _refuse_other_host(descriptor, path)
        mine = {'pid': os.getpid(), 'host': socket.gethostname(), 'started': f'{datetime.now():%Y-%m-%d %H:%M:%S}'}
        replace_content(descriptor, json.dumps(mine).encode())
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows removes nothing that is open
                path.unlink(missing_ok=True)  # while it is locked: what another run has opened until then, it opens anew
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    """A descriptor of the lock file, which this process alone has locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock(descriptor)
        except OSError as error:
            owner = _owner(descriptor)
            if error.errno in _NO_LOCKS:  # what the file tells is all that is known
                return descriptor
            os.close(descriptor)
            if error.errno not in _HELD:
                raise
            raise FolderInUse(f'{_in_words(owner)} is at work in {_folder(path)}: wait for its end, or give this run '
                              'another name') from None
        if _is_still(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _refuse_other_host(descriptor: int, path: Path) -> None:
    owner = _owner(descriptor)
    if owner.get('host', socket.gethostname()) != socket.gethostname():
        raise FolderInUse(f'{_in_words(owner)} has {_folder(path)}, and whether it is still at work cannot be seen from '
                          f'here: if it is not, remove {path}, or else give this run another name')


def _owner(descriptor: int) -> dict[str, Any]:
    """What the file tells; nothing if it was not written to its end."""
    try:
        told = json.loads(read_at_start(descriptor, _MOST_BYTES))
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _in_words(owner: dict[str, Any]) -> str:
    if not owner:
        return 'another run'
    return f'a run (process {owner.get("pid")} on {owner.get("host")}, since {owner.get("started")})'


def _folder(path: Path) -> Path:
    return path.with_name(path.name[1:].removesuffix('.lock'))
