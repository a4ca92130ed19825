"""The files of one save, which belong together or do not exist.

The manifest ``training_states/N.json`` is written last, with the size and the SHA-256 of each file. A set without one was
not finished, or BasicSR wrote it.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from .storage import BadFile, load_tensors, write_atomically

_BLOCK = 1 << 20


def seal(root: Path, iteration: int, files: Sequence[Path]) -> None:
    """Write the manifest of a set.

    Args:
        root: folder of the experiment.
        iteration: of the set.
        files: all of it, under ``root``.

    Raises:
        OSError: if it could not be written.
    """
    content = {'iteration': iteration, 'files': {str(file.relative_to(root)): {'bytes': file.stat().st_size,
                                                                                 'sha256': _digest(file)} for file in files}}
    write_atomically(lambda target: target.write(json.dumps(content, indent=1).encode()), _manifest(root, iteration))


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
        listed = json.loads(manifest.read_text(encoding='utf-8'))['files']
        for name, expected in listed.items():
            file = root / name
            if not file.is_file():
                return f'{name} is missing'
            if file.stat().st_size != expected['bytes']:
                return f'{name} has {file.stat().st_size} bytes and had {expected["bytes"]}'
            if _digest(file) != expected['sha256']:
                return f'{name} has changed since it was written'
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f'{manifest.name} cannot be read ({type(error).__name__})'
    return None


def _fault_without_manifest(root: Path, iteration: int) -> str | None:
    files = files_of(root, iteration)
    if not any(file.suffix == '.pth' for file in files):
        return 'its networks are missing'
    try:
        for file in files:
            load_tensors(file)
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
    return sorted(int(file.stem) for file in (root / 'training_states').glob('*.state') if file.stem.isdigit())


def discard(root: Path, iteration: int) -> None:
    """Remove a set; its manifest first, so that what is left of it is never taken for whole."""
    _manifest(root, iteration).unlink(missing_ok=True)
    for file in reversed(files_of(root, iteration)):
        file.unlink(missing_ok=True)


def prune(root: Path, keep_last: int, keep: Collection[int] = ()) -> None:
    """Remove old sets.

    Args:
        root: folder of the experiment.
        keep_last: number of the newest valid sets that stay.
        keep: iterations that stay, too.
    """
    valid = [iteration for iteration in iterations(root) if _manifest(root, iteration).is_file()]
    for iteration in valid[:-keep_last]:
        if iteration not in keep:
            discard(root, iteration)
