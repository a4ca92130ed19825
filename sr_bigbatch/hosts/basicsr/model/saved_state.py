"""The files of a BasicSR training: written whole, never with broken weights, and the way back to the last good ones."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from basicsr.utils import get_root_logger
from torch import nn

from sr_bigbatch.files import checkpoint_set
from sr_bigbatch.files.storage import load_tensors, save_atomically
from sr_bigbatch.hosts.basicsr.model.best_metrics import best_iterations, best_metrics, load_best_metrics
from sr_bigbatch.hosts.basicsr.model.host import HostModel, OurState, TrainingState
from sr_bigbatch.hosts.basicsr.settings import Options
from sr_bigbatch.step.distributed import rank
from sr_bigbatch.step.finite import flag, poisoned, read

if TYPE_CHECKING:
    from sr_bigbatch.hosts.basicsr.model.accumulating import Accumulating

OURS: Literal['sr_bigbatch'] = 'sr_bigbatch'  # our part of BasicSR's training state
MOST_RESTORES = 3
MOST_REFUSALS = 50  # in a row, of one network: single ones are answered by leaving a step out


class GaveUp(RuntimeError):
    """The training cannot go on; the message says why and what is left."""


def networks(model: HostModel) -> dict[str, nn.Module]:
    """The networks of a model by the names of their attributes."""
    return {name: getattr(model, name) for name in ('net_g', 'net_g_ema', 'net_d') if hasattr(model, name)}


def not_finite(model: HostModel) -> list[str]:
    """What must not be saved: names of parameters, buffers and optimizer states that are not finite."""
    found = [f'{label}.{name}' for label, net in networks(model).items() for name in poisoned(net)]
    for index, optimizer in enumerate(model.optimizers):
        moments = [entry for state in optimizer.state.values() for entry in state.values()
                   if isinstance(entry, torch.Tensor) and entry.is_floating_point()]
        if not all(read([flag(moment) for moment in moments])):  # Adam's `step` is on the CPU, its moments are not
            found.append(f'optimizers[{index}]')
    return found


def our_state(model: Accumulating) -> OurState:
    """What our models know beyond BasicSR's."""
    return {'step': model.step.state_dict(), 'events': model.events.state_dict(), 'growths': list(model.growths),
            'idle': list(model.idle), 'batch': None if model.batch_schedule is None else model.batch_schedule.size,
            'seed': model.opt.get('manual_seed'), 'best': best_metrics(model), 'fingerprint': model.fingerprint,
            'data': model.state_of_data()}


def load_our_state(model: Accumulating, state: TrainingState) -> None:
    """Take over our part of a training state; a state of BasicSR's own models has none."""
    ours = state.get(OURS)
    if ours is None:
        return
    step = dict(ours['step']) if 'step' in ours else _step_of_0_1_0(ours, int(state['iter']))
    if model.settings.stages:  # the plan belongs to a stage: it counts when the first one is entered
        model.saved_plan, step['plan'] = step['plan'], None
    model.step.load_state_dict(step)
    batch = ours.get('batch')
    if model.batch_schedule is not None and batch:
        model.batch_schedule.size = min(int(batch), model.batch_schedule.largest)
    model.events.load_state_dict(ours['events'])
    model.idle = list(ours.get('idle', ()))
    load_best_metrics(model, ours.get('best'))


def _step_of_0_1_0(ours: Options, iteration: int) -> Options:
    """The state of a step as version 0.1.0 saved it, in today's layout."""
    return {'version': 1, 'steps': iteration, 'plan': ours.get('plan'), 'precision': ours['precision'],
            'loss_scales': dict(zip('gd', ours['loss_scales'], strict=False)),
            'noise': dict(zip('gd', ours.get('noise', ()), strict=False))}


def _root(model: HostModel) -> Path | None:
    """The folder of the experiment; None in a script that has none and only says where its files go."""
    root = model.opt['path'].get('experiments_root')
    return None if root is None else Path(root)


def _in_set(model: HostModel, place: Path) -> Path:
    """Where to write a file of a set: it waits for the others, unless its folder is one that `seal` does not know."""
    root = _root(model)
    known = () if root is None else (root / 'models', root / 'training_states')
    return checkpoint_set.staged(place) if place.parent in known else place


def save_networks(model: HostModel, label: str, iteration: int, nets: dict[str, nn.Module]) -> None:
    """Write the weights of networks by their BasicSR keys (``params``, ``params_ema``); see :func:`one_set`."""
    folder = Path(model.opt['path']['models'])
    path = folder / f'{label}_latest.pth' if iteration == -1 else _in_set(model, folder / f'{label}_{iteration}.pth')
    save_atomically({key: {name: tensor.cpu() for name, tensor in net.state_dict().items()}
                     for key, net in nets.items()}, path)


@contextmanager
def one_set(model: Accumulating, iteration: int) -> Iterator[None]:
    """Seal what is saved within as the set of an iteration, then remove sets that need not be kept.

    If that fails, nothing of it stays, and every set that was there is as it was. The ``latest`` networks (-1) are no set,
    and neither is what a script saves that has no ``path.experiments_root``.

    Raises:
        OSError: if it could not be written. Old sets that cannot be removed are only told of.
    """
    root, settings = _root(model), model.opt.get('logger') or {}
    if iteration == -1 or rank() != 0 or root is None:
        yield
        return
    try:
        yield
        checkpoint_set.seal(root, iteration, checkpoint_set.staged_files(root, iteration))
    finally:
        checkpoint_set.discard(root, iteration)
    if settings.get('keep_last'):
        failures = checkpoint_set.prune(root, iteration, int(settings['keep_last']),
                                        best_iterations(model) if settings.get('keep_best') else ())
        for failure in failures:
            if failure not in model.told:  # it is tried again at each save
                get_root_logger().warning(failure)
        model.told = failures


def save_training_state(model: Accumulating, epoch: int, iteration: int) -> None:
    """Write BasicSR's training state, and ours in it; see :func:`one_set`."""
    state: TrainingState = {'epoch': epoch, 'iter': iteration,
                            'optimizers': [optimizer.state_dict() for optimizer in model.optimizers],
                            'schedulers': [scheduler.state_dict() for scheduler in model.schedulers], OURS: our_state(model)}
    save_atomically(state, _in_set(model, Path(model.opt['path']['training_states']) / f'{iteration}.state'))


def return_to_last_good(model: Accumulating, reason: str) -> int:
    """Give networks and optimizers back what they were at the newest save; the data go on.

    Args:
        model: one of our models.
        reason: what is wrong with it now.

    Returns:
        The iteration of that save.

    Raises:
        GaveUp: if nothing was saved, or weights were restored too often.
    """
    model.restores += 1
    states = model.opt['path'].get('training_states')
    if states is None:
        raise GaveUp(f'{reason}: there is no save to return to, because path.training_states is not set')
    folder = Path(states)
    root = folder.parent
    saved = [iteration for iteration in reversed(checkpoint_set.iterations(root))
             if checkpoint_set.fault(root, iteration) is None]
    if not saved or model.restores > MOST_RESTORES:
        why = ('nothing has been saved yet to return to' if not saved else
               f'this has happened {model.restores} times; lower train.optim_g.lr and train.optim_d.lr, or clip gradients '
               f'(train.optim_wrapper.clip_grad: {{max_norm: 1}}), and go on from {folder / str(saved[0])}.state')
        raise GaveUp(f'{reason}: {why}')
    models = Path(model.opt['path']['models'])
    state = load_tensors(folder / f'{saved[0]}.state')
    if any(len(optimizer.param_groups) != len(content['param_groups'])
           for optimizer, content in zip(model.optimizers, state['optimizers'], strict=True)):
        raise GaveUp(f'{reason}: the newest save, of iteration {saved[0]}, is from before the discriminator grew; go on '
                     'from it with --auto_resume')
    for label, net in networks(model).items():
        file = models / f'{label.removesuffix("_ema")}_{saved[0]}.pth'
        model.load_network(net, str(file), True, 'params_ema' if label == 'net_g_ema' else 'params')
    for optimizer, content in zip(model.optimizers, state['optimizers'], strict=True):
        optimizer.load_state_dict(content)
    get_root_logger().warning(f'{reason}: networks and optimizers are again those of iteration {saved[0]}; the data go on.')
    return saved[0]
