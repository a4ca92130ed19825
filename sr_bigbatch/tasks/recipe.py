"""Translates a training recipe to another effective batch: rescales iteration counts to equal images."""
from __future__ import annotations

import copy
import math
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

import yaml

from sr_bigbatch.options import OptionError

LR_RULES = ('same', 'sqrt', 'linear')
_MODELS = {'ESRGANModel': 'AccumulatingESRGANModel', 'SRModel': 'AccumulatingSRModel',
           'RealESRGANModel': 'AccumulatingRealESRGANModel', 'RealESRNetModel': 'AccumulatingRealESRNetModel'}
_BATCHES_IN_POOL = 6  # with fewer, a batch has many images of each draw of Real-ESRGAN's degradations
_COUNTED = (('train', 'total_iter'), ('train', 'warmup_iter'), ('train', 'net_d_init_iters'), ('val', 'val_freq'),
            ('logger', 'print_freq'), ('logger', 'save_checkpoint_freq'))


_CELL = 48  # characters of a value in a table; the file has all of it
_HOOK_COUNTS = ('until', 'fade_iters', 'warmup_iters')


@dataclass(frozen=True)
class Change:
    """One option that is another one than before.

    Attributes:
        path: sections and key.
        old: its value before, as text; empty where there was none.
        new: its value now, as text.
        why: in a few words.
    """

    path: tuple[str, ...]
    old: str
    new: str
    why: str


@dataclass
class Recipe:
    """Options, and what was changed in them.

    Attributes:
        opt: the options as they are now.
        changes: the reason for each option that is another one than before.
        left_out: what has no counterpart in these options, by its name, with what to do about it.
    """

    opt: dict[str, Any]
    changes: list[Change] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def change(self, path: tuple[str, ...], value: Any, why: str) -> None:
        """Set an option and remember why."""
        section = self.opt
        for name in path[:-1]:
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
        before = section.get(path[-1])
        if before != value:
            section[path[-1]] = value
            self.changes.append(Change(path, '' if before is None else in_line(before), in_line(value), why))

    def text(self) -> str:
        """The options as YAML, in their order; each change, with what was there before, behind its line."""
        notes: dict[tuple[str, ...], list[str]] = {}
        for change in self.changes:
            notes.setdefault(change.path, []).append(f'{f"was {change.old}: " if change.old else ""}{change.why}')
        lines, path = [f'# left out: {name}: {what}' for name, what in self.left_out.items()], list[tuple[int, str]]()
        for line in yaml.dump(self.opt, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=10**6,
                              allow_unicode=True).splitlines():
            key, indent = line.strip().partition(':')[0], len(line) - len(line.lstrip())
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key)]
            note = notes.get(tuple(name for _, name in path))
            lines.append(f'{line}  # {"; ".join(note)}' if note else line)
        return '\n'.join(lines) + '\n'

    def table(self) -> str:
        """What was changed, as lines of option, old value, new value and reason; and what was left out."""
        rows = [('option', 'old', 'new', 'why'),
                *(('.'.join(change.path), textwrap.shorten(change.old, _CELL) or '-', textwrap.shorten(change.new, _CELL),
                   change.why) for change in self.changes)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ['  '.join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]
        return '\n'.join([*(lines if self.changes else ['Nothing had to be changed.']),
                          *(f'left out: {name}: {what}' for name, what in self.left_out.items())])


class _Dumper(yaml.SafeDumper):
    """Writes each key on a line of its own, so that a comment can stand behind it, and lists in one line."""

    def ignore_aliases(self, data: Any) -> bool:
        """Repeat what is repeated."""
        return True


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence('tag:yaml.org,2002:seq', data, flow_style=True))


def in_line(value: Any) -> str:
    """A value as it stands in an option file, in one line."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix('\n').removesuffix('\n...')


def translate(opt: dict[str, Any], batch: int, lr_rule: str = 'same') -> Recipe:
    """The options for an effective batch, and each change with its reason.

    Args:
        opt: options of BasicSR's SRModel, ESRGANModel, RealESRNetModel or RealESRGANModel.
        batch: the effective batch that is wanted, in images, of all processes.
        lr_rule: learning rates stay (``same``), or grow by the square root of the batch (``sqrt``) or with it (``linear``).

    Raises:
        OptionError: for options of another model, or a batch that the processes cannot share.
    """
    recipe = Recipe(copy.deepcopy(opt))
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
    if train.get('batch_schedule'):
        raise OptionError(['train.batch_schedule names batches of its own: take it out, or change it by hand'])
    if batch % processes:
        raise OptionError([f'an effective batch of {batch} cannot be shared by {processes} processes'])
    factor = batch / before
    recipe.change(('datasets', 'train', 'batch_size_per_gpu'), batch // processes,
                  f'effective batch {before} -> {batch}; one iteration is one update with all of them')
    if batch != before:
        recipe.change(('name',), with_batch(str(opt.get('name', 'train')), before, batch), 'says the batch')
    _components(recipe)
    if 0 < int(opt.get('queue_size') or 0) < _BATCHES_IN_POOL * batch:
        recipe.change(('queue_size',), _BATCHES_IN_POOL * batch, f'{_BATCHES_IN_POOL} batches, so that their images come '
                      'from many draws of degradations')
    for path in _COUNTED:
        _count(recipe, path, factor)
    _schedule(recipe, factor)
    _hooks(recipe, factor)
    if train.get('ema_decay'):
        recipe.change(('train', 'ema_decay'), round(float(train['ema_decay'])**factor, 6),
                      f'averages over as many images as before: to the power of {factor:g}')
    _rates(recipe, factor, lr_rule)
    return recipe


def with_batch(name: str, before: int, batch: int) -> str:
    """The name of a run or file with its batch in it: in place of the old one, or behind it."""
    old = re.compile(rf'((?:bs|batch[_-]?size[_-]?|batch[_-]?))0*{before}(?!\d)|(B){before}(?=G\d)', re.IGNORECASE)
    new, found = old.subn(lambda match: f'{match[1] or match[2]}{batch}', name)
    return new if found else f'{name}_bs{batch}'


def _components(recipe: Recipe) -> None:
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


def _count(recipe: Recipe, path: tuple[str, str], factor: float) -> None:
    value = (recipe.opt.get(path[0]) or {}).get(path[1])
    if isinstance(value, int | float) and value > 0:
        recipe.change(path, max(1, math.ceil(float(value) / factor)),
                      f'after as many images as before: divided by {factor:g}')


def _schedule(recipe: Recipe, factor: float) -> None:
    for name in ('milestones', 'periods', 'restarts'):
        steps = (recipe.opt['train'].get('scheduler') or {}).get(name)
        if steps:
            recipe.change(('train', 'scheduler', name), [max(0, round(step / factor)) for step in steps],
                          f'after as many images as before: divided by {factor:g}')


def _hooks(recipe: Recipe, factor: float) -> None:
    hooks = copy.deepcopy(recipe.opt.get('custom_hooks') or [])
    for hook in hooks:
        for section in (hook, *(hook.get('stages') or [])):
            for key in (key for key in _HOOK_COUNTS if section.get(key)):
                section[key] = max(1, math.ceil(section[key] / factor))
            if section.get('batch_size'):
                section['batch_size'] = max(1, round(section['batch_size'] * factor))
    if hooks:
        recipe.change(('custom_hooks',), hooks, f'after as many images as before: divided by {factor:g}')


def _rates(recipe: Recipe, factor: float, lr_rule: str) -> None:
    if lr_rule == 'same':
        return
    growth = math.sqrt(factor) if lr_rule == 'sqrt' else factor
    for name in ('optim_g', 'optim_d'):
        rate = (recipe.opt['train'].get(name) or {}).get('lr')
        if rate is not None:
            recipe.change(('train', name, 'lr'), float(f'{float(rate) * growth:.6g}'),
                          f'{lr_rule} rule: times {growth:.4g}')
