"""The files of one save, which belong together or do not exist.

The manifest ``training_states/N.json`` is written last, with the size and the SHA-256 of each file. A set without one was
not finished, or BasicSR wrote it. All files of a save are written beside their places (``.NAME.next``) before the first is
put into its own, so that a save that fails harms none that is there, not even that of the same iteration.
"""
from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path

from sr_bigbatch.files.storage import BadFile, load_tensors, write_atomically
from sr_bigbatch.system import sync

_BLOCK = 1 << 20
_WAITING = '.next'


def staged(path: Path) -> Path:
    """Where a file of a save waits until the whole save is written; what has its place until then stays as it is."""
    return path.with_name(f'.{path.name}{_WAITING}')


def _place(file: Path) -> Path:
    return file.with_name(file.name[1:].removesuffix(_WAITING)) if file.name.endswith(_WAITING) else file


def seal(root: Path, iteration: int, files: Sequence[Path]) -> None:
    """Write the manifest of a set, and put everything in its place; a set that was there before is replaced only now.

    Args:
        root: folder of the experiment.
        iteration: of the set.
        files: all of it, under ``root``: ``staged``, or in its place already.

    Raises:
        OSError: if it could not be written; then nothing was replaced.
    """
    manifest = _manifest(root, iteration)
    for place in (manifest, *map(_place, files)):
        if place.is_dir():  # os.replace would fail, with a part of the set in its place
            raise IsADirectoryError(f'{place} is a folder')
    content = {'iteration': iteration, 'files': {str(_place(file).relative_to(root)): {
        'bytes': file.stat().st_size, 'sha256': _digest(file)} for file in files}}
    write_atomically(lambda target: target.write(json.dumps(content, indent=1).encode()), staged(manifest))
    _put_in_place(root, iteration)


def _put_in_place(root: Path, iteration: int) -> None:
    manifest = _manifest(root, iteration)
    for file in (*staged_files(root, iteration), staged(manifest)):  # the manifest last: while it waits, `finish` goes on
        os.replace(file, _place(file))
        sync(file.parent)


def staged_files(root: Path, iteration: int) -> list[Path]:
    """The networks and the training state of an iteration that wait for their places."""
    state = staged(root / 'training_states' / f'{iteration}.state')
    return [*sorted((root / 'models').glob(f'.net_*_{iteration}.pth{_WAITING}')), *([state] if state.is_file() else [])]


def finish(root: Path) -> None:
    """Put in its place what a killed process had written whole, and remove what it had not.

    Raises:
        OSError: if a file could not be moved or removed.
    """
    for manifest in (root / 'training_states').glob(f'.*.json{_WAITING}'):
        _put_in_place(root, int(_place(manifest).stem))
    for file in root.glob(f'*/.*{_WAITING}'):
        file.unlink()


def discard(root: Path, iteration: int) -> None:
    """Remove what a failed save has written, and nothing else: a set in its place stays as it is."""
    if not staged(_manifest(root, iteration)).exists():  # if it is there, all is written, and `finish` puts it in its place
        for file in staged_files(root, iteration):
            file.unlink()


def _manifest(root: Path, iteration: int) -> Path:
    return root / 'training_states' / f'{iteration}.json'


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open('rb') as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def files_of(root: Path, iteration: int) -> list[Path]:
    """The networks and the training state of an iteration, as far as they are there."""
    models = sorted((root / 'models').glob(f'net_*_{iteration}.pth'))
    state = root / 'training_states' / f'{iteration}.state'
    return [*models, *([state] if state.is_file() else [])]


def fault(root: Path, iteration: int) -> str | None:
    """What is wrong with the set of an iteration; None if it can be used."""
    manifest = _manifest(root, iteration)
    if not manifest.is_file():
        return _fault_without_manifest(root, iteration)
    try:
        content = json.loads(manifest.read_text(encoding='utf-8'))
        listed = content['files']
        foreign = _fault_of_listing(content['iteration'], set(listed), iteration)
        if foreign is not None:
            return f'{manifest.name} {foreign}'
        for name, expected in listed.items():
            file = root / name
            if not file.is_file():
                return f'{name} is missing'
            if file.stat().st_size != expected['bytes']:
                return f'{name} has {file.stat().st_size} bytes and had {expected["bytes"]}'
            if _digest(file) != expected['sha256']:
                return f'{name} has changed since it was written'
        added = [file.name for file in files_of(root, iteration) if str(file.relative_to(root)) not in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f'{manifest.name} cannot be read ({type(error).__name__})'
    return f'{", ".join(added)} is not one of its files' if added else None


def _fault_of_listing(named: object, listed: set[str], iteration: int) -> str | None:
    """Why a manifest cannot be that of an iteration: a set is one training state and at least one network."""
    if named != iteration:
        return f'is that of iteration {named}'
    networks = {name for name in listed if re.fullmatch(rf'models/net_\w+_{iteration}\.pth', name)}
    state = f'training_states/{iteration}.state'
    others = sorted(listed - networks - {state})
    if others:
        return f'names {others[0]}, which belongs to no save of this iteration'
    missing = [kind for kind, there in (('no training state', state in listed), ('no network', networks)) if not there]
    return f'names {" and ".join(missing)}' if missing else None


def foreign_networks(state: Path, models: Path) -> str | None:
    """Which of the networks that a state was saved with is missing or another one in a folder; None if none is.

    Args:
        state: of any experiment. Without a manifest beside it nothing can be told.
        models: a folder, perhaps of another experiment.
    """
    try:
        listed = json.loads(state.with_suffix('.json').read_text(encoding='utf-8'))['files']
        for name, expected in listed.items():
            file = models / Path(name).name
            if name.startswith('models/') and not (file.is_file() and _digest(file) == expected['sha256']):
                return f'{file} {"is not the one" if file.is_file() else "is missing"} that {state} was saved with'
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return None


def _fault_without_manifest(root: Path, iteration: int) -> str | None:
    files = files_of(root, iteration)
    if not any(file.suffix == '.pth' for file in files):
        return 'its networks are missing'
    try:
        for file in files:
            content = load_tensors(file)
            if file.suffix == '.state' and content.get('iter') != iteration:
                return f'{file.name} is that of iteration {content.get("iter")}'
    except BadFile as error:
        return str(error)
    return None


def newest_valid(root: Path) -> tuple[Path | None, list[str]]:
    """The training state of the newest set that can be used, and a line for each newer one: which, and why not.

    Args:
        root: folder of the experiment.
    """
    passed_over: list[str] = []
    for iteration in reversed(iterations(root)):
        reason = fault(root, iteration)
        if reason is None:
            return root / 'training_states' / f'{iteration}.state', passed_over
        passed_over.append(f'The save of iteration {iteration} is passed over: {reason}.')
    return None, passed_over


def iterations(root: Path) -> list[int]:
    """The iterations that have a training state, ascending."""
    return sorted(int(file.stem) for file in (root / 'training_states').glob('*.state') if file.stem.isdecimal())


def set_aside(root: Path, after: int) -> tuple[Path | None, list[int]]:
    """Move the sets of later iterations out of the way of a run that goes back, so that none is taken for one of its own.

    Args:
        root: folder of the experiment.
        after: the iteration that the run goes on from; its set and earlier ones stay.

    Returns:
        The new folder in ``root``, in which they lie as they did in ``root``, and their iterations; None and none if no
        set is later.

    Raises:
        OSError: if a file could not be moved.
    """
    later = [iteration for iteration in iterations(root) if iteration > after]
    if not later:
        return None, []
    time = f'{datetime.now():%Y%m%d_%H%M%S}'
    names = (root / f'set_aside_{time}{f"_{number}" if number else ""}' for number in itertools.count())
    aside = next(folder for folder in names if not folder.exists())
    for iteration in reversed(later):
        for file in (*reversed(files_of(root, iteration)), _manifest(root, iteration)):  # the state first: it makes a set
            if file.is_file():
                place = aside / file.relative_to(root)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)
    for folder in ('models', 'training_states'):
        sync(root / folder)
    return aside, later


def prune(root: Path, written: int, keep_last: int, keep: Collection[int] = ()) -> list[str]:
    """Remove sets that are older than ``keep_last`` whole ones; sets that are not whole do not count.

    Args:
        root: folder of the experiment.
        written: iteration of the set that has just been written. Newer ones, of a run that went further, are left alone.
        keep_last: number of whole sets that stay, ``written`` among them.
        keep: iterations that stay, too.

    Returns:
        A line for each set that could not be removed.
    """
    whole, failures = 1, []
    sealed = [iteration for iteration in iterations(root) if iteration < written and _manifest(root, iteration).is_file()]
    for iteration in reversed(sealed):
        try:
            if whole < keep_last:
                whole += _is_whole(root, iteration, _stats(_manifest(root, iteration), *files_of(root, iteration)))
            elif iteration not in keep:
                _remove(root, iteration)
        except OSError as error:
            failures.append(f'The save of iteration {iteration} could not be removed: {error}')
    return failures


def _stats(*files: Path) -> tuple[tuple[Path, int, int, int], ...]:
    found = [(file, file.stat()) for file in files]
    return tuple((file, stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in found)


@functools.lru_cache(maxsize=256)
def _is_whole(root: Path, iteration: int, stats: tuple[tuple[Path, int, int, int], ...]) -> bool:
    # To read all kept sets again at each save would take longer than the save: each is read once in a process, as long as
    # the file system tells of no change (``stats``). What decays unseen is found at the next start, which reads everything.
    return fault(root, iteration) is None


def _remove(root: Path, iteration: int) -> None:
    """Remove a set; its manifest first, so that what is left of it is never taken for sealed."""
    _manifest(root, iteration).unlink(missing_ok=True)
    for file in reversed(files_of(root, iteration)):
        file.unlink(missing_ok=True)
