"""Where a training goes on from, and whether it is the same training."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from basicsr.utils import check_resume

from sr_bigbatch.files.checkpoint_set import fault, finish, foreign_networks, newest_valid
from sr_bigbatch.files.storage import load_tensors
from sr_bigbatch.hosts.basicsr.model.host import TrainingState
from sr_bigbatch.hosts.basicsr.model.saved_state import OURS
from sr_bigbatch.hosts.basicsr.settings import Options
from sr_bigbatch.hosts.basicsr.training.fingerprint import Fingerprint, differences
from sr_bigbatch.options import OptionError
from sr_bigbatch.step.distributed import everywhere, rank, world_size


def state_to_resume(opt: Options) -> tuple[TrainingState | None, list[str]]:
    """The training state to go on from, or None; and a line for each newer one that cannot be used.

    Raises:
        OptionError: if the state that the options name cannot be used, or processes would go on from different ones.
    """
    path, passed_over = opt['path'].get('resume_state'), list[str]()
    root = Path(opt['path']['experiments_root'])
    if opt['auto_resume'] or path is not None:
        if rank() == 0:
            finish(root)
        if world_size() > 1:
            torch.distributed.barrier()
    if opt['auto_resume']:
        found, passed_over = newest_valid(root)
        path = path if found is None else str(found)
    every = everywhere(None if path is None else Path(path).name)
    if len(set(every)) > 1:
        raise OptionError([f'the processes would go on from different states ({", ".join(map(str, every))}): do all of them '
                           f'see the same {root}?'])
    if path is None:
        return None, passed_over
    opt['path']['resume_state'] = path
    state: Any = load_tensors(Path(path))
    reason = _fault(Path(path), state, opt['path'])
    if reason is not None:
        raise OptionError([f'path.resume_state: {reason}'])
    check_resume(opt, state['iter'])
    return state, passed_over


def _fault(path: Path, state: Any, paths: Options) -> str | None:
    """Why a state is not gone on from: its networks must be those with which it was saved."""
    if not _is_state(state):
        return f'{path} is no training state of BasicSR: iter, optimizers and schedulers are expected'
    iteration = state['iter']
    if path.stem.isdigit() and int(path.stem) != iteration:
        return f'{path} holds the state of iteration {iteration}, by its name that of iteration {path.stem}'
    if paths.get('ignore_resume_networks'):
        return None  # the user wants other networks
    root = Path(paths['experiments_root'])
    if path.resolve() == (root / 'training_states' / path.name).resolve():
        reason = fault(root, iteration)
        return None if reason is None else f'{path} cannot be used: {reason}'
    if not list((root / 'models').glob(f'net_*_{iteration}.pth')):
        return f'the networks of {path} are missing: copy those of iteration {iteration} into {root / "models"}'
    return foreign_networks(path, root / 'models')


def _is_state(content: dict[str, object]) -> bool:
    iteration = content.get('iter')
    whole = isinstance(iteration, int) and not isinstance(iteration, bool) and iteration >= 0
    parts = [content.get(name) for name in ('optimizers', 'schedulers')]
    lists = all(isinstance(part, list) and all(isinstance(entry, dict) for entry in part) for part in parts)
    return whole and lists and isinstance(content.get(OURS, {}), dict)


def compared(state: TrainingState, now: Fingerprint) -> list[str]:
    """Compare a run with that of a state; returns a line for each difference.

    Raises:
        OptionError: with all that makes it a run which cannot go on from this state.
    """
    ours = state.get(OURS)
    if ours is None:
        return ['The state is one of BasicSR, which does not tell options, data and versions: nothing was compared.']
    saved = ours.get('fingerprint')
    if not isinstance(saved, dict):  # of version 0.1.0, which saved no seed either; or of later ones, which did
        seed, given = ours.get('seed'), now['options'].get('manual_seed')
        told = [] if seed in (None, given) else [f'manual_seed was {seed} and is {given}: from now on the latter.']
        return ['The state does not tell options, data and versions: they were not compared.', *told]
    refused, told = differences(saved, now)
    if refused:
        raise OptionError([f'path.resume_state: {line}' for line in refused])
    return [f'Since the save: {line}' for line in told]
