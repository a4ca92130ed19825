"""Predicts what a BasicSR training of ours takes, from its options alone."""
from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from basicsr.archs import vgg_arch
from basicsr.losses import build_loss
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.sr_model import SRModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from tqdm import tqdm

from sr_bigbatch.hosts.basicsr.construct import fake_network, quiet, reason
from sr_bigbatch.hosts.basicsr.settings import Options, TrainingSettings
from sr_bigbatch.hosts.basicsr.synthesis.sharpen import Sharpen
from sr_bigbatch.hosts.losses import HostLosses
from sr_bigbatch.memory.autocast_rules import autocast_as_on
from sr_bigbatch.memory.live_bytes import Flops, LiveBytes, tensors_of
from sr_bigbatch.memory.predict import AS_IT_IS, MemoryModel, PhasePeaks, Plan, Run, fit, plans, with_state
from sr_bigbatch.memory.target import Target
from sr_bigbatch.nets.rrdb import POLICIES
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.plan import WHOLE, MicroBatchSizes, StepPlan
from sr_bigbatch.step.replay import batch_norms
from sr_bigbatch.step.supervised_step import SupervisedStep

_BASELINE_BATCH = (1, 2)


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

    def __init__(self, settings: TrainingSettings, gt_size: int, mode: FakeTensorMode) -> None:
        self.settings, self.gt_size = settings, gt_size
        network_d = _for_size(settings, gt_size)
        self.net_g = fake_network(settings.network_g, mode)
        self.net_d = None if network_d is None else fake_network(network_d, mode)
        self.ema = fake_network(settings.network_g, mode) if settings.averages else None
        with _without_vgg_weights():
            self.criteria: dict[str, nn.Module | None] = {
                name: build_loss(loss) if loss else None for name, loss in settings.losses.items()}
        self.sharpen = None
        if settings.sharpened:
            with unset_fake_temporarily():
                self.sharpen = Sharpen()  # of numbers that cv2 computes
            self.sharpen.kernel = mode.from_tensor(self.sharpen.kernel)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Low-resolution and ground-truth images of an effective batch."""
        low, channels = self.gt_size // self.settings.scale, self.settings.channels
        return torch.rand(count, channels, low, low), torch.rand(count, channels, self.gt_size, self.gt_size)

    def everything(self) -> list[Tensor]:
        """Tensors that live all the time, but for optimizer states."""
        return tensors_of(self.net_g, self.net_d, self.ema, self.sharpen, *self.criteria.values())


def _for_size(settings: TrainingSettings, gt_size: int) -> Options | None:
    """The options of the discriminator that judges crops of this size."""
    network_d = settings.network_d
    if not network_d or 'input_size' not in network_d:
        return network_d or None
    grown = (gt_size // network_d['input_size']).bit_length() - 1
    return {**network_d, 'input_size': gt_size, **({'prepended': grown} if settings.prepends else {})}


@contextmanager
def _without_vgg_weights() -> Iterator[None]:
    """Build VGG without weights: neither file nor download is needed to know its size."""
    models = vgg_arch.vgg

    class Untrained:
        def __getattr__(self, kind: str) -> Any:
            return lambda pretrained: getattr(models, kind)(weights=None)

    path = vgg_arch.VGG_PRETRAIN_PATH
    vgg_arch.VGG_PRETRAIN_PATH, vgg_arch.vgg = '', Untrained()
    try:
        yield
    finally:
        vgg_arch.VGG_PRETRAIN_PATH, vgg_arch.vgg = path, models


def predict(settings: TrainingSettings, gt_size: int, batch: int, micro: int, kept: bool, kind: str = 'cuda') -> Run:
    """Run one step on fake tensors.

    Args:
        settings: of the training; its ``activation_memory`` counts.
        gt_size: crop size, in pixels.
        batch: effective batch of a process.
        micro: micro-batch of generator and losses; a discriminator with BatchNorm gets the whole batch.
        kept: whether all of the generator's graphs are kept.
        kind: type of the device whose rules of autocast hold.

    Raises:
        CannotPredict: if networks or losses do not run on fake tensors.
    """
    with _explained(), autocast_as_on(kind), FakeTensorMode() as mode:
        parts = _Parts(settings, gt_size, mode)
        lq, gt = parts.batch(batch)
        whole = parts.net_d is not None and bool(batch_norms(parts.net_d))
        plan = StepPlan(MicroBatchSizes(micro, micro, WHOLE if whole else micro), batch if kept else 0)
        foreach = kind == 'cuda'  # torch's default
        losses = HostLosses('l_', parts.criteria['pixel'], parts.criteria['perceptual'], target=parts.sharpen,
                            of_target=settings.sharpened - {'gan'})
        with LiveBytes([*parts.everything(), lq, gt]) as live, Flops() as flops:
            opt_g = with_state(torch.optim.Adam(parts.net_g.parameters(), foreach=foreach))
            observer = PhasePeaks(live)
            step: AdversarialStep | SupervisedStep
            if parts.net_d is not None and parts.criteria['gan'] is not None:
                opt_d = with_state(torch.optim.Adam(parts.net_d.parameters(), foreach=foreach))
                step = AdversarialStep(parts.net_g, parts.net_d, opt_g, opt_d, losses, parts.criteria['gan'],
                                       plan=plan, relativistic=settings.relativistic, dtype=settings.dtype,
                                       observer=observer, values=False,
                                       real_images=parts.sharpen if 'gan' in settings.sharpened else None)
            else:
                step = SupervisedStep(parts.net_g, opt_g, losses, plan=plan, dtype=settings.dtype, observer=observer,
                                      values=False)
            step(lq, gt)
        return Run({phase: peak for phase, peak in live.peak.items() if phase}, flops.total)


def validation_peak(settings: TrainingSettings, size: int) -> int:
    """Bytes that live when a validation image of ``size`` x ``size`` pixels is generated, at their highest."""
    with _explained(), FakeTensorMode() as mode, torch.no_grad():
        parts = _Parts(settings, size if settings.data is None else settings.data.gt_size, mode)
        low = torch.rand(1, settings.channels, size // settings.scale, size // settings.scale)
        with LiveBytes([*parts.everything(), low]) as live:
            parts.net_g.eval()(low)
        return int(live.peak[''])


def baseline_flops(settings: TrainingSettings, gt_size: int) -> float:
    """Operations per sample of BasicSR's own undivided step."""
    network_g = dict(settings.network_g)
    if network_g['type'] in ('CheckpointedRRDBNet', 'RRDBNet'):
        network_g['type'] = 'RRDBNet'
        network_g.pop('activation_memory', None)
    settings = replace(settings, network_g=network_g)
    totals = []
    for count in _BASELINE_BATCH:
        with _explained(), FakeTensorMode() as mode:
            parts = _Parts(settings, gt_size, mode)
            host = SimpleNamespace(net_g=parts.net_g, net_d=parts.net_d, ema_decay=0)
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


def model_of(settings: TrainingSettings, gt_size: int, memory: Any, kept: bool, kind: str) -> MemoryModel:
    """Memory and work of the effective batch of a training at a crop size.

    Args:
        settings: of the training.
        gt_size: of the crops, in pixels.
        memory: ``network_g.activation_memory``; None where the network has no such option.
        kept: whether the generator's graphs are kept.
        kind: type of the device whose rules of autocast hold.
    """
    chosen = settings.with_memory(memory)
    return fit(lambda count, micro: predict(chosen, gt_size, count, micro, kept, kind), settings.batch_size)


def candidates(settings: TrainingSettings, gt_size: int, val_size: int, target: Target, processes: int = 1) -> list[Plan]:
    """All plans for the effective batch of a training at a crop size, with a progress bar.

    Args:
        settings: of the training.
        gt_size: of the crops, in pixels.
        val_size: width and height of the largest validation image, in pixels.
        target: the device for which it is.
        processes: how many predict at the same time.
    """
    policies = tuple(POLICIES) if settings.network_g['type'] == 'CheckpointedRRDBNet' else (None,)
    combinations = list(itertools.product(policies, (True, False) if settings.network_d else (False,)))
    jobs = [(settings, gt_size, *combination, target.kind) for combination in combinations]
    with ExitStack() as opened:
        bar = opened.enter_context(tqdm(total=len(jobs), unit='policy', desc=f'{gt_size} px'))
        run: Any = itertools.starmap(model_of, jobs)
        if processes > 1:
            pool = ProcessPoolExecutor(min(processes, len(jobs)), multiprocessing.get_context('spawn'))
            run = opened.enter_context(pool).map(model_of, *zip(*jobs, strict=True))
        models: dict[tuple[str, bool], MemoryModel] = {}
        for (memory, kept), model in zip(combinations, run, strict=True):
            models[memory or AS_IT_IS, kept] = model
            bar.update()
    validation = float(validation_peak(settings, val_size))
    return [replace(plan, peak={**plan.peak, 'validate': validation})
            for plan in plans(models, baseline_flops(settings, gt_size), target)]
