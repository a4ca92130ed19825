"""Predicts what a BasicSR training of ours takes, from its options alone."""
from __future__ import annotations

import copy
import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from basicsr.archs import vgg_arch
from basicsr.losses import build_loss
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.sr_model import SRModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

from sr_bigbatch.hosts.basicsr.construct import fake_network, quiet, reason
from sr_bigbatch.hosts.losses import HostLosses
from sr_bigbatch.hosts.mmengine.optim_wrapper import DTYPES
from sr_bigbatch.memory.live_bytes import Flops, LiveBytes, tensors_of
from sr_bigbatch.memory.predict import Model, Plan, Run, fake_update, fit, plans, watch, without_values
from sr_bigbatch.nets.rrdb import POLICIES
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.replay import batch_norms
from sr_bigbatch.step.supervised_step import SupervisedStep

_BASELINE_BATCH = (1, 2)


def dtype_of(opt: dict[str, Any]) -> torch.dtype:
    """The autocast dtype that the options ask for."""
    return DTYPES[opt['train'].get('optim_wrapper', {}).get('dtype', 'float32')]


class CannotPredict(RuntimeError):
    """Networks or losses do not run without values; the message says why. It passes from process to process."""


@contextmanager
def _explained() -> Iterator[None]:
    try:
        with quiet():
            yield
    except Exception as error:  # of whatever code it is that the options name
        raise CannotPredict('the memory of these networks cannot be predicted, because a step on tensors without values '
                            f'fails ({reason(error)})') from error


class _Parts:
    """Networks and losses of a training, on fake tensors; to be made inside ``mode``."""

    def __init__(self, opt: dict[str, Any], gt_size: int, mode: FakeTensorMode) -> None:
        self.opt, self.gt_size, train = opt, gt_size, opt['train']
        self.dtype = dtype_of(opt)
        self.net_g = fake_network(opt['network_g'], mode)
        self.net_d = fake_network(_for_size(opt, gt_size), mode) if opt.get('network_d') else None
        self.ema = fake_network(opt['network_g'], mode) if train.get('ema_decay') else None
        with _without_vgg_weights():
            self.criteria: dict[str, nn.Module | None] = {
                name: build_loss(train[f'{name}_opt']) if train.get(f'{name}_opt') else None
                for name in ('pixel', 'perceptual', 'gan')}

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Low-resolution and ground-truth images of an effective batch."""
        low = self.gt_size // self.opt['scale']
        return torch.rand(count, 3, low, low), torch.rand(count, 3, self.gt_size, self.gt_size)

    def everything(self) -> list[Tensor]:
        """Tensors that live all the time, but for optimizer states."""
        return tensors_of(self.net_g, self.net_d, self.ema, *self.criteria.values())


def _for_size(opt: dict[str, Any], gt_size: int) -> dict[str, Any]:
    """The options of the discriminator that judges crops of this size."""
    network_d: dict[str, Any] = opt['network_d']
    if 'input_size' not in network_d:
        return network_d
    ways = {hook.get('growth') for hook in opt.get('custom_hooks') or []}
    prepended = {'prepended': (gt_size // network_d['input_size']).bit_length() - 1} if 'prepend' in ways else {}
    return {**network_d, 'input_size': gt_size, **prepended}


@contextmanager
def _without_vgg_weights() -> Iterator[None]:
    """Build VGG without weights: neither file nor download is needed to know its size."""
    models = vgg_arch.vgg

    class Untrained:
        def __getattr__(self, kind: str) -> Any:
            return lambda pretrained: getattr(models, kind)(weights=None)

    with mock.patch.object(vgg_arch, 'VGG_PRETRAIN_PATH', ''), mock.patch.object(vgg_arch, 'vgg', Untrained()):
        yield


def predict(opt: dict[str, Any], gt_size: int, batch: int, micro: int, kept: bool) -> Run:
    """Run one step on fake tensors.

    Args:
        opt: checked options; ``network_g.activation_memory`` counts.
        gt_size: crop size, in pixels.
        batch: effective batch of a process.
        micro: micro-batch of generator and losses; a discriminator with BatchNorm gets the whole batch.
        kept: whether all of the generator's graphs are kept.

    Raises:
        CannotPredict: if networks or losses do not run on fake tensors.
    """
    with _explained(), FakeTensorMode() as mode:
        parts = _Parts(opt, gt_size, mode)
        lq, gt = parts.batch(batch)
        whole = parts.net_d is not None and bool(batch_norms(parts.net_d))
        plan = StepPlan(MicroBatchSizes(micro, micro, batch if whole else micro), batch if kept else 0)
        losses = HostLosses('l_', parts.criteria['pixel'], parts.criteria['perceptual'])
        with LiveBytes([*parts.everything(), lq, gt]) as live, Flops() as flops:
            update_g = fake_update(torch.optim.Adam(parts.net_g.parameters()))
            step: AdversarialStep | SupervisedStep
            if parts.net_d is not None and parts.criteria['gan'] is not None:
                update_d = fake_update(torch.optim.Adam(parts.net_d.parameters()))
                step = AdversarialStep(parts.net_g, parts.net_d, update_g, update_d, losses, parts.criteria['gan'], plan,
                                       opt['train'].get('relativistic_gan', True), parts.dtype)
            else:
                step = SupervisedStep(parts.net_g, update_g, losses, plan, parts.dtype)
            watch(step, live)
            with without_values():
                step(lq, gt)
        return Run({phase: peak for phase, peak in live.peak.items() if phase}, flops.total)


def validation_peak(opt: dict[str, Any], size: int) -> int:
    """Bytes that live when a validation image of ``size`` x ``size`` pixels is generated, at their highest."""
    with _explained(), FakeTensorMode() as mode, torch.no_grad():
        parts = _Parts(opt, int(opt['datasets']['train']['gt_size']), mode)
        low = torch.rand(1, 3, size // opt['scale'], size // opt['scale'])
        with LiveBytes([*parts.everything(), low]) as live:
            parts.net_g.eval()(low)
        return int(live.peak[''])


def baseline_flops(opt: dict[str, Any], gt_size: int) -> float:
    """Operations per sample of BasicSR's own undivided step."""
    opt = copy.deepcopy(opt)
    opt['network_g']['type'] = 'RRDBNet' if opt['network_g']['type'] == 'CheckpointedRRDBNet' else opt['network_g']['type']
    if opt['network_g']['type'] == 'RRDBNet':
        opt['network_g'].pop('activation_memory', None)
    totals = []
    for count in _BASELINE_BATCH:
        with _explained(), FakeTensorMode() as mode:
            parts = _Parts(opt, gt_size, mode)
            host: Any = mock.Mock(spec=[])
            host.net_g, host.net_d, host.ema_decay = parts.net_g, parts.net_d, 0
            host.lq, host.gt = parts.batch(count)
            host.cri_pix, host.cri_perceptual, host.cri_gan = parts.criteria.values()
            host.net_d_iters, host.net_d_init_iters = 1, 0
            host.optimizer_g = torch.optim.Adam(parts.net_g.parameters())
            if parts.net_d is not None:
                host.optimizer_d = torch.optim.Adam(parts.net_d.parameters())
            host.reduce_loss_dict = lambda losses: losses
            with Flops() as flops:
                (SRModel if parts.net_d is None else ESRGANModel).optimize_parameters(host, 1)
            totals.append(flops.total)
    return float(totals[1] - totals[0])


def model_of(opt: dict[str, Any], gt_size: int, memory: Any, kept: bool) -> Model:
    """Memory and work of the effective batch of the options at a crop size.

    Args:
        opt: checked options.
        gt_size: of the crops, in pixels.
        memory: ``network_g.activation_memory``; None where the network has no such option.
        kept: whether the generator's graphs are kept.
    """
    if memory is not None:
        opt = {**opt, 'network_g': {**opt['network_g'], 'activation_memory': memory}}
    return fit(lambda count, micro: predict(opt, gt_size, count, micro, kept),
               int(opt['datasets']['train']['batch_size_per_gpu']))


def candidates(opt: dict[str, Any], gt_size: int, val_size: int, processes: int = 1) -> list[Plan]:
    """All plans for the effective batch of the options at a crop size, with a progress bar.

    Args:
        opt: checked options.
        gt_size: of the crops, in pixels.
        val_size: width and height of the largest validation image, in pixels.
        processes: how many predict at the same time.
    """
    policies = tuple(POLICIES) if opt['network_g']['type'] == 'CheckpointedRRDBNet' else (None,)
    combinations = list(itertools.product(policies, (True, False) if opt.get('network_d') else (False,)))
    jobs = [(opt, gt_size, *combination) for combination in combinations]
    with ExitStack() as opened:
        bar = opened.enter_context(tqdm(total=len(jobs), unit='policy', desc=f'{gt_size} px'))
        run: Any = itertools.starmap(model_of, jobs)
        if processes > 1:
            pool = ProcessPoolExecutor(min(processes, len(jobs)), multiprocessing.get_context('spawn'))
            run = opened.enter_context(pool).map(model_of, *zip(*jobs, strict=True))
        models: dict[tuple[str, bool], Model] = {}
        for (memory, kept), model in zip(combinations, run, strict=True):
            models[memory or 'as it is', kept] = model
            bar.update()
    validation = float(validation_peak(opt, val_size))
    return [replace(plan, peak={**plan.peak, 'validate': validation})
            for plan in plans(models, baseline_flops(opt, gt_size))]
