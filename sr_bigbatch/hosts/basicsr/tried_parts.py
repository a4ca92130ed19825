"""Puts each part of a training to a small use, as the first iterations will: what passes here does not stumble there."""
from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from basicsr.archs.vgg_arch import NAMES, insert_bn
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import LOSS_REGISTRY, MODEL_REGISTRY
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from sr_bigbatch.hosts.basicsr.construct import construct, fake_network, network_to_inspect, quiet, reason
from sr_bigbatch.hosts.basicsr.settings import Options, TrainingSettings
from sr_bigbatch.hosts.registered import build_registered
from sr_bigbatch.system import physical_bytes

_SAMPLES = 2
_METRIC_SIZE = 256  # pixels of a pretended validation image
_LARGEST_CROP = 256  # pixels of a pretended ground truth for the losses
_CRITERIA = ('l1', 'l2', 'fro')


def trial_findings(opt: Options) -> Iterator[str]:
    """A finding for each part that fails in its work, although it can be built."""
    train, settings = opt['train'], TrainingSettings.from_options(opt)
    for name in ('optim_g', 'optim_d'):
        if train.get(name):
            yield from _tried(f'train.{name}', partial(_optimize, opt, name))
    yield from _tried('train.scheduler', partial(_schedule, opt))
    yield from _tried('network_g', partial(_generate, opt, settings))
    if opt.get('network_d'):
        yield from _tried('network_d', partial(_judge, opt['network_d'], settings))
    for name, use in (('pixel_opt', _compare), ('ldl_opt', _compare), ('gan_opt', _grade)):
        if train.get(name):
            yield from _tried(f'train.{name}', partial(use, train[name], settings))
    if (train.get('perceptual_opt') or {}).get('type') == 'PerceptualLoss':
        yield from _tried('train.perceptual_opt', partial(_layers, train['perceptual_opt']))
    for index, hook in enumerate(opt.get('custom_hooks') or []):
        yield from _tried(f'custom_hooks[{index}]', partial(build_registered, HOOKS, hook, 'it'))
    for name, metric in ((opt.get('val') or {}).get('metrics') or {}).items():
        if metric['type'] != 'calculate_perceptual_distance':  # it reads the weights of its network
            yield from _tried(f'val.metrics.{name}', partial(_measure, metric))


class _Unfit(ValueError):
    """What a part cannot do, as the end of a sentence that begins with its name."""


def _tried(where: str, use: Callable[[], Any]) -> Iterator[str]:
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter('ignore')  # the training itself will say it
            use()
    except _Unfit as error:
        yield f'{where} {error}'
    except Exception as error:  # of whatever code it is that the options name
        yield f'{where}: {reason(error)}'


def _host(opt: Options) -> Any:
    """As much of BasicSR's model as builds optimizers and schedulers."""
    kind = MODEL_REGISTRY.get(opt['model_type'])
    model: Any = object.__new__(kind if issubclass(kind, BaseModel) else BaseModel)
    BaseModel.__init__(model, {'num_gpu': 0, 'is_train': True, 'dist': False,
                               'train': {'scheduler': dict(opt['train']['scheduler'])}})
    return model


def _optimizer(model: Any, settings: Options) -> torch.optim.Optimizer:
    arguments = {key: value for key, value in settings.items() if key != 'type'}
    optimizer: torch.optim.Optimizer = model.get_optimizer(settings['type'], [nn.Parameter(torch.zeros(1))], **arguments)
    return optimizer


def _optimize(opt: Options, name: str) -> None:
    optimizer = _optimizer(_host(opt), opt['train'][name])
    for parameter in optimizer.param_groups[0]['params']:
        parameter.grad = torch.ones(1)
    optimizer.step()


def _schedule(opt: Options) -> None:
    model, last = _host(opt), int(opt['train']['total_iter']) - 1
    model.optimizers = [_optimizer(model, opt['train']['optim_g'])]
    model.optimizers[0].step()  # or the scheduler warns
    model.setup_schedulers()
    for scheduler in model.schedulers:
        for iteration in (0, last // 2, last):
            scheduler.last_epoch = iteration
            try:
                rates = scheduler.get_lr()
            except Exception as error:
                raise _Unfit(f'has no learning rate for iteration {iteration} of {last + 1}: {reason(error)}') from error
            if not all(math.isfinite(rate) for rate in rates):
                raise _Unfit(f'gives the learning rate {rates[0]} at iteration {iteration}')


def _generate(opt: Options, settings: TrainingSettings) -> None:
    _fits_memory(opt['network_g'])
    size, channels, scale = settings.first_size or 0, settings.channels, settings.scale
    made = _shape(opt['network_g'], (_SAMPLES, channels, size // scale, size // scale))
    if made is not None and made != (_SAMPLES, channels, size, size):
        raise _Unfit(f'makes {_by(made)} (samples, channels, height, width) of crops of {size // scale} px, and scale '
                     f'{scale} needs {_by((_SAMPLES, channels, size, size))}')


def _judge(network_d: Options, settings: TrainingSettings) -> None:
    _fits_memory(network_d)
    size = settings.first_size or 0
    made = _shape(network_d, (_SAMPLES, settings.channels, size, size))
    if made is not None and made[:1] != (_SAMPLES,):
        raise _Unfit(f'makes {_by(made)} of {_SAMPLES} samples: logits are expected, those of each sample')


def _by(shape: tuple[int, ...]) -> str:
    return ' x '.join(map(str, shape))


def _shape(network: Options, of: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of what a network makes; None if that hangs on values, which there are none of."""
    try:
        with quiet(), FakeTensorMode() as mode, torch.no_grad():
            made = fake_network(network, mode)(torch.empty(of))
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    if not isinstance(made, Tensor):
        raise _Unfit(f'makes a {type(made).__name__}, and a tensor is expected')
    return tuple(made.shape)


def _fits_memory(network: Options) -> None:
    needed = sum(parameter.numel() * parameter.element_size() for parameter in network_to_inspect(network).parameters())
    there = physical_bytes()
    if there is not None and needed > there:
        raise _Unfit(f'has weights of {needed / 2**30:.0f} GB, and this machine has {there / 2**30:.0f} GB of memory')


def _compare(loss: Options, settings: TrainingSettings) -> None:
    size = min(settings.first_size or _LARGEST_CROP, _LARGEST_CROP)
    output = torch.rand(_SAMPLES, settings.channels, size, size, requires_grad=True)
    _differentiate(construct(LOSS_REGISTRY, loss)(output, torch.rand(output.shape)))


def _grade(loss: Options, settings: TrainingSettings) -> None:
    criterion = construct(LOSS_REGISTRY, loss)
    for real in (True, False):
        for judging in (True, False):
            logits = torch.rand(_SAMPLES, 1, requires_grad=True)
            _differentiate(criterion(logits, real, is_disc=judging))


def _differentiate(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise _Unfit(f'gives a {type(loss).__name__}, and a tensor is expected')
    if not bool(loss.isfinite().all()):
        raise _Unfit('gives no finite number for images of random numbers')
    loss.mean().backward()  # type: ignore[no-untyped-call]


def _layers(settings: Options) -> None:
    """A perceptual loss, without the weights of its network."""
    kind, weights = str(settings.get('vgg_type', 'vgg19')), settings.get('layer_weights')
    names = NAMES.get(kind.removesuffix('_bn'))
    if names is None:
        return  # what is said about the weights names it
    known = insert_bn(names) if kind.endswith('_bn') else names
    if not isinstance(weights, dict) or not weights:
        raise _Unfit('needs layer_weights, as {conv5_4: 1.0}')
    for name, weight in weights.items():
        if name not in known:
            raise _Unfit(f'has no layer {name}; {kind} has {", ".join(known)}')
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise _Unfit(f'must have a number for layer_weights.{name}, got {weight!r}')
    if settings.get('criterion', 'l1') not in _CRITERIA:
        raise _Unfit(f'.criterion must be one of {", ".join(_CRITERIA)}, got {settings["criterion"]!r}')
    for name in ('perceptual_weight', 'style_weight'):
        if not isinstance(settings.get(name, 0), int | float):
            raise _Unfit(f'must have a number for {name}, got {settings[name]!r}')


def _measure(metric: Options) -> None:
    drawn = np.random.RandomState(0)  # one of its own: that of the training stays where it is
    images = {name: drawn.randint(0, 256, (_METRIC_SIZE, _METRIC_SIZE, 3)).astype(np.uint8) for name in ('img', 'img2')}
    try:
        float(calculate_metric(images, metric))
    except (ValueError, ArithmeticError):
        return  # such as NIQE's of a flat image: the training goes on without its value
