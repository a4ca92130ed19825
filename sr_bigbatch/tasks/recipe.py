"""Translates a training recipe to another effective batch: rescales iteration counts to equal images."""
from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import yaml

from sr_bigbatch.options import OptionError

LR_RULES = ('same', 'sqrt', 'linear')
_MODELS = {'ESRGANModel': 'AccumulatingESRGANModel', 'SRModel': 'AccumulatingSRModel'}
_COUNTED = (('train', 'total_iter'), ('train', 'warmup_iter'), ('train', 'net_d_init_iters'), ('val', 'val_freq'),
            ('logger', 'print_freq'), ('logger', 'save_checkpoint_freq'))


@dataclass
class _Recipe:
    """Options, and the reason for each of those that were changed, by its path."""

    opt: dict[str, Any]
    reasons: dict[tuple[str, ...], str] = field(default_factory=dict)

    def change(self, path: tuple[str, ...], value: Any, why: str) -> None:
        """Set an option and remember why."""
        section = self.opt
        for name in path[:-1]:
            section = section.setdefault(name, {})
        before = section.get(path[-1])
        if before != value:
            section[path[-1]] = value
            self.reasons[path] = f'{f"was {before}: " if before is not None else ""}{why}'


def translate(opt: dict[str, Any], batch: int, lr_rule: str = 'same') -> str:
    """The option file for an effective batch, as text; each change has a comment.

    Args:
        opt: options of BasicSR's SRModel or ESRGANModel.
        batch: the effective batch that is wanted, in images, of all processes.
        lr_rule: learning rates stay (``same``), or grow by the square root of the batch (``sqrt``) or with it (``linear``).

    Raises:
        OptionError: for options of another model, or a batch that the processes cannot share.
    """
    recipe = _Recipe(copy.deepcopy(opt))
    try:
        processes = max(1, int(opt['num_gpu'])) if opt['num_gpu'] != 'auto' else 1
        before = int(opt['datasets']['train']['batch_size_per_gpu']) * processes
        model, train = opt['model_type'], opt['train']
    except (KeyError, TypeError, ValueError) as error:
        raise OptionError([f'this is not an option file of a BasicSR training: {error} is missing or wrong']) from None
    if model not in _MODELS and model not in _MODELS.values():
        raise OptionError([f'model_type is {model}; recipes for {", ".join(_MODELS)} can be translated'])
    if lr_rule not in LR_RULES:
        raise OptionError([f'the learning-rate rule must be one of {", ".join(LR_RULES)}, got {lr_rule!r}'])
    if batch % processes:
        raise OptionError([f'an effective batch of {batch} cannot be shared by {processes} processes'])
    factor = batch / before
    recipe.change(('datasets', 'train', 'batch_size_per_gpu'), batch // processes,
                  f'effective batch {before} -> {batch}; one iteration is one update with all of them')
    _components(recipe)
    for path in _COUNTED:
        _count(recipe, path, factor)
    for name in ('milestones', 'periods', 'restarts'):
        steps = (train.get('scheduler') or {}).get(name)
        if steps:
            recipe.change(('train', 'scheduler', name), [max(0, round(step / factor)) for step in steps],
                          f'after as many images as before: divided by {factor:g}')
    if train.get('ema_decay'):
        recipe.change(('train', 'ema_decay'), round(float(train['ema_decay'])**factor, 6),
                      f'averages over as many images as before: to the power of {factor:g}')
    _rates(recipe, factor, lr_rule)
    return _with_comments(recipe)


def _components(recipe: _Recipe) -> None:
    opt = recipe.opt
    recipe.change(('model_type',), _MODELS.get(opt['model_type'], opt['model_type']),
                  'works through the batch in micro-batches, with the update of the undivided batch')
    if opt['network_g'].get('type') == 'RRDBNet':
        recipe.change(('network_g', 'type'), 'CheckpointedRRDBNet', 'the same weights, outputs and gradients in less memory')
        recipe.change(('network_g', 'activation_memory'), 'auto', 'what fits is chosen when the training starts')
    if (opt.get('network_d') or {}).get('type') == 'VGGStyleDiscriminator':
        recipe.change(('network_d', 'type'), 'GrowableVGGDiscriminator', 'the same weights; judges the batch in less memory')
        recipe.change(('network_d', 'input_size'), opt['network_d'].get('input_size', 128), 'width of the crops')
        recipe.change(('network_d', 'norm'), 'batch', 'as VGGStyleDiscriminator; group is exact at any micro-batch')
    if 'micro_batch_size' not in opt['train']:
        recipe.change(('train', 'micro_batch_size'), 'auto', 'what fits is chosen when the training starts')


def _count(recipe: _Recipe, path: tuple[str, str], factor: float) -> None:
    value = (recipe.opt.get(path[0]) or {}).get(path[1])
    if isinstance(value, int | float) and value > 0:
        recipe.change(path, max(1, math.ceil(float(value) / factor)),
                      f'after as many images as before: divided by {factor:g}')


def _rates(recipe: _Recipe, factor: float, lr_rule: str) -> None:
    if lr_rule == 'same':
        return
    growth = math.sqrt(factor) if lr_rule == 'sqrt' else factor
    for name in ('optim_g', 'optim_d'):
        rate = (recipe.opt['train'].get(name) or {}).get('lr')
        if rate is not None:
            recipe.change(('train', name, 'lr'), float(f'{float(rate) * growth:.6g}'),
                          f'{lr_rule} rule: times {growth:.4g}')


def _with_comments(recipe: _Recipe) -> str:
    """The options as YAML, in the order of the original, with the reasons behind their lines."""
    lines, path = [], list[tuple[int, str]]()
    for line in yaml.safe_dump(recipe.opt, sort_keys=False, default_flow_style=None, width=1000).splitlines():
        key, indent = line.strip().partition(':')[0], len(line) - len(line.lstrip())
        path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key)]
        reason = recipe.reasons.get(tuple(name for _, name in path))
        lines.append(f'{line}  # {reason}' if reason else line)
    return '\n'.join(lines) + '\n'
