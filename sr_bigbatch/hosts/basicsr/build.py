"""Checks what the registries and constructors of the hosts would be asked to build."""
from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from basicsr.models import lr_scheduler
from basicsr.utils.file_client import FileClient
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sr_bigbatch.hosts.basicsr.construct import construct, fake_network, names_of, network_to_inspect, quiet, reason
from sr_bigbatch.hosts.basicsr.options.schema import schema_findings
from sr_bigbatch.hosts.basicsr.settings import Options, TrainingSettings
from sr_bigbatch.hosts.basicsr.synthesis.settings import REAL_ESRGAN, REAL_ESRNET
from sr_bigbatch.hosts.mmengine.optim_wrapper import WRAPPER, OverflowSafeOptimWrapper
from sr_bigbatch.hosts.registered import build_registered, name_findings, not_registered, registered
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.nets.vgg_growth import grow
from sr_bigbatch.options import did_you_mean, unknown_keys
from sr_bigbatch.progressive.stages import Stage, parse_stages
from sr_bigbatch.step.distributed import world_size
from sr_bigbatch.step.plan import StepPlan
from sr_bigbatch.step.replay import batch_norms

OUR_MODELS = ('AccumulatingSRModel', 'AccumulatingESRGANModel', REAL_ESRNET, REAL_ESRGAN)


def part_findings(opt: Options) -> Iterable[str]:
    """Everything that a registry or a constructor builds: is the type known, and does it take these arguments?"""
    if str(opt['model_type']) not in names_of(MODEL_REGISTRY):
        yield f'model_type {opt["model_type"]} is not registered{did_you_mean(opt["model_type"], names_of(MODEL_REGISTRY))}'
    for phase, dataset in opt['datasets'].items():
        where = f'datasets.{phase}'
        if str(dataset.get('type')) not in names_of(DATASET_REGISTRY):
            yield f'{where}.type: {dataset.get("type")}{did_you_mean(dataset.get("type"), names_of(DATASET_REGISTRY))}'
        yield from _storage(dataset.get('io_backend'), f'{where}.io_backend')
    for name in ('network_g', 'network_d'):
        if opt.get(name):
            yield from _built(opt[name], name, names_of(ARCH_REGISTRY))
    for index, hook in enumerate(opt.get('custom_hooks') or []):
        yield from _hook(hook, f'custom_hooks[{index}]', opt)
    yield from _training_parts(opt['train'])
    for name, metric in ((opt.get('val') or {}).get('metrics') or {}).items():
        yield from _built(metric, f'val.metrics.{name}', names_of(METRIC_REGISTRY), {'better'})


def _storage(backend: Any, where: str) -> Iterable[str]:
    if backend is not None:
        yield from _built(backend, where, FileClient._backends)
        if isinstance(backend, dict) and 'sys_path' in backend:
            yield f'{where}.sys_path would have modules imported from there: leave it out, and set PYTHONPATH'


def _hook(hook: Any, where: str, opt: Options) -> Iterable[str]:
    known = registered(HOOKS)
    misnamed = name_findings(hook, known, where) if isinstance(hook, dict) and 'type' in hook else []
    yield from misnamed or _built(hook, where, known)
    if not misnamed and isinstance(hook, dict) and hook.get('type') == 'ProgressiveResolutionHook':
        yield from _stages(hook, where, opt)


def _stages(hook: Options, where: str, opt: Options) -> Iterable[str]:
    data, scale = opt['datasets']['train'], opt['scale']
    try:
        build_registered(HOOKS, hook, where)
        stages = parse_stages(hook['stages'], int(data['batch_size_per_gpu']) * world_size())
    except (KeyError, TypeError, ValueError) as error:
        yield f'{where}: {error}'
        return
    if stages[0].gt_size != data['gt_size']:
        yield f'{where}: the first stage has gt_size {stages[0].gt_size} but datasets.train.gt_size is {data["gt_size"]}'
    yield from (f'{where}: gt_size {stage.gt_size} is not a multiple of scale {scale}'
                for stage in stages if stage.gt_size % scale)
    if data['type'] == 'PairedImageDataset':
        yield f'{where}: crops can only grow if datasets.train.type is ProgressivePairedImageDataset'
    if opt.get('network_d') and len(stages) > 1:
        yield from _judges_all(opt['network_d'], hook.get('growth', 'append'), stages, where)


def _judges_all(network_d: Options, way: str, stages: Sequence[Stage], where: str) -> Iterable[str]:
    """A finding for the first stage whose crops the discriminator does not judge."""
    kind = network_d.get('type')
    try:
        net_d = network_to_inspect(network_d)
    except Exception:
        return  # build_findings says why
    for stage in stages[1:]:
        try:
            if isinstance(net_d, GrowableVGGDiscriminator):
                while net_d.input_size < stage.gt_size:
                    grow(net_d, way)
            else:
                _judge(network_d, stage.gt_size)
        except DataDependentOutputException:
            return  # it looks at values, which a try without memory has not
        except Exception as error:
            instead = '' if kind == 'GrowableVGGDiscriminator' else (
                '. GrowableVGGDiscriminator grows, and loads the weights of VGGStyleDiscriminator (norm: batch)')
            yield f'{where}: {kind} does not judge crops of {stage.gt_size} px: {reason(error)}{instead}'
            return


def _judge(network_d: Options, size: int) -> None:
    with quiet(), FakeTensorMode() as mode:
        fake_network(network_d, mode)(torch.empty(2, network_d.get('num_in_ch', 3), size, size))


def _training_parts(train: Options) -> Iterable[str]:
    kinds: dict[str, Mapping[str, Any]] = {
        **dict.fromkeys(('pixel_opt', 'perceptual_opt', 'ldl_opt', 'gan_opt'), names_of(LOSS_REGISTRY)),
        **dict.fromkeys(('optim_g', 'optim_d'), _classes(torch.optim, torch.optim.Optimizer)),
        'scheduler': _schedulers()}
    for name, known in kinds.items():
        if train.get(name):
            yield from _built(train[name], f'train.{name}', known)
    if isinstance(train.get('optim_wrapper'), dict):  # if not, the schema says so
        yield from _wrapper(train['optim_wrapper'], 'train.optim_wrapper')


def _wrapper(given: Options, where: str) -> list[str]:
    """What is wrong with the settings of an optimizer wrapper; they are tried on one of a single weight."""
    settings, known = {**WRAPPER, **given}, registered(OPTIM_WRAPPERS)
    found = name_findings(settings, known, where)
    if not found and not issubclass(known[settings['type']], OverflowSafeOptimWrapper):
        found = [f'{where}.type: {settings["type"]} cannot repeat a step that overflows: use OverflowSafeOptimWrapper']
    found = found or list(_built(settings, where, known, {'clip_grad'}))
    if found or list(schema_findings({'train': {'optim_wrapper': given}})):
        return found
    try:
        build_registered(OPTIM_WRAPPERS, settings, where, optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0))
    except (TypeError, ValueError, AssertionError) as error:
        return [f'{where}: {error}']
    return []


def _classes(module: ModuleType, base: type) -> dict[str, type]:
    """The classes of a package; its other attributes, as the modules that it imports, are no choice."""
    return {name: thing for name, thing in vars(module).items()
            if inspect.isclass(thing) and issubclass(thing, base) and thing is not base}


def _schedulers() -> dict[str, type]:
    return {**_classes(lr_scheduler, lr_scheduler._LRScheduler), 'MultiStepLR': lr_scheduler.MultiStepRestartLR}


def _built(settings: Any, where: str, known: Mapping[str, Any], also: Iterable[str] = ()) -> Iterable[str]:
    if not isinstance(settings, dict) or 'type' not in settings:
        yield f'{where} needs a type'
        return
    built = known.get(str(settings['type']))
    if built is None:
        yield not_registered(settings['type'], known, where)
        return
    parameters = inspect.signature(built).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    keys = {name for name in parameters if name not in ('self', 'params', 'optimizer', 'kwargs')} | {'type', *also}
    if not takes_any or also:
        yield from unknown_keys(settings, keys, where, {})


def build_findings(opt: Options) -> list[str]:
    """Build networks and losses, without memory where they allow it. Is the update that of the whole batch?"""
    networks: dict[str, nn.Module | None] = {'network_g': None, 'network_d': None}
    train = opt['train']
    try:
        for name in ('pixel_opt', 'ldl_opt', 'gan_opt'):  # not the perceptual one: it reads its weights
            where = f'train.{name}'
            if train.get(name):
                construct(LOSS_REGISTRY, train[name])
        for where in networks:
            if opt.get(where):
                networks[where] = network_to_inspect(opt[where])
    except Exception as error:  # of whatever code it is that the options name
        return [f'{where}: {reason(error)}']
    net_g, net_d = networks.values()
    if net_g is None or opt['model_type'] not in OUR_MODELS:
        return []
    settings = TrainingSettings.from_options(opt)
    return _inexact(settings.plan(net_d), settings.batch_size, net_g, net_d)


def _inexact(plan: StepPlan, batch_size: int, net_g: nn.Module, net_d: nn.Module | None) -> list[str]:
    """A finding for each network whose update would not be that of the whole batch, although it is to be exact."""
    findings = []
    for name, net, size in (('network_g', net_g, plan.micro.generator), ('network_d', net_d, plan.micro.discriminator)):
        if net is not None and plan.exact and batch_norms(net) and size < batch_size:
            findings.append(
                f'{name} normalises over the batch (BatchNorm) but sees {size} of {batch_size} samples at a time, so its '
                'update would not be that of the batch. Either let it see the whole batch of its process '
                '(train.micro_batch_size), or choose a norm without batch statistics (network_d.norm: group), or accept '
                'the difference (train.accumulation: plain)')
    return findings
