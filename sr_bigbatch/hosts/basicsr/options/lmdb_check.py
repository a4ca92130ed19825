"""Looks into the LMDBs of BasicSR's layout without trusting them."""
from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import lmdb


def lmdb_findings(folder: Path) -> Iterable[str]:
    """A finding for an LMDB that is not an LMDB, was cut off, or lacks an image that its ``meta_info.txt`` names.

    Reading beyond the end of a file that was cut off would end the process with a bus error and no message.

    Args:
        folder: whose name ends in ``.lmdb``.
    """
    data = folder / 'data.mdb'
    if not data.is_file():
        yield f'{data} is missing'
        return
    try:
        with lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False) as environment:
            pages, size = environment.info()['last_pgno'] + 1, environment.stat()['psize']
            if pages * size > os.path.getsize(data):
                yield (f'{data} was cut off: it should have {pages * size} bytes and has {os.path.getsize(data)}. Copy or '
                       'make it again')
                return
            with environment.begin() as transaction:
                yield from _missing(folder, transaction.cursor())
    except (lmdb.Error, OSError, ValueError) as error:
        yield f'{data} is not an LMDB, or damaged ({error})'


def _missing(folder: Path, cursor: lmdb.Cursor) -> Iterable[str]:
    for line in (folder / 'meta_info.txt').read_text(encoding='utf-8').splitlines():
        key = line.split('.')[0]  # as BasicSR reads it
        if line.strip() and not key.isascii():
            yield f'{folder}: BasicSR does not read {key}, which is not ASCII: make it with tools/prepare_data.py --lmdb'
            return
        if line.strip() and not (key and cursor.set_key(key.encode())):
            dots = (' (a name ends at its first dot there: make it again with tools/prepare_data.py)'
                    if line.count('.') > 1 else '')
            yield f'{folder} has no image {key}, which its meta_info.txt names{dots}'
            return
