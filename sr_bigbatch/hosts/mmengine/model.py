"""ESRGAN as a model for mmengine's Runner: one iteration takes the whole effective batch."""
from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.model.wrappers import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODEL_WRAPPERS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn

from sr_bigbatch.hosts.losses import HostLosses
from sr_bigbatch.hosts.mmengine.types import Settings
from sr_bigbatch.nets.arrangement import arrange
from sr_bigbatch.nets.rrdb import CheckpointedRRDBNet
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.arithmetic import set_tf32
from sr_bigbatch.step.distributed import same_everywhere
from sr_bigbatch.step.plan import WHOLE, StepPlan
from sr_bigbatch.step.report import StepReport
from sr_bigbatch.step.update import Verdict

for _network in (CheckpointedRRDBNet, GrowableVGGDiscriminator):
    MODELS.register_module(module=_network)


@MODELS.register_module()
class HostDataPreprocessor(BaseDataPreprocessor):  # type: ignore[misc]
    """Leaves a batch where it is: the step moves what a micro-batch needs to the device."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """``data`` itself."""
        return data


@MODELS.register_module()
class AccumulatingESRGAN(BaseModel):  # type: ignore[misc]
    """ESRGAN at an effective batch of any size, with the update of the undivided batch.

    One iteration of the Runner is one effective batch and one update of each network: ``max_iters``, schedules and hooks
    count updates. Do not set ``accumulative_counts``.

    Shapes: a batch is a dict of ``lq`` (B, C, h, w) and ``gt`` (B, C, H, W), values in [0, 1].

    Args:
        net_g: settings of the generator, from mmengine's registry ``MODELS``.
        net_d: settings of the discriminator, likewise.
        pixel_loss, perceptual_loss: settings of BasicSR's losses, or of modules in ``MODELS``; None for none.
        gan_loss: settings of BasicSR's ``GANLoss``.
        micro_batch_size: samples worked on at a time; or a dict of ``generator``, ``perceptual`` and ``discriminator``.
        kept_graphs: see :class:`sr_bigbatch.step.plan.StepPlan`.
        relativistic_gan: False for the plain GAN of SRGAN.
        ema_decay: of the averaged generator ``net_g_ema``, which moves only when the generator has moved; 0 for none.
        data_preprocessor: settings; None for :class:`HostDataPreprocessor`.
        accumulation: ``exact`` or ``plain``.
        verify_every: see :class:`sr_bigbatch.step.adversarial_step.AdversarialStep`.
        tf32: see :func:`sr_bigbatch.step.arithmetic.set_tf32`.

    Attributes:
        report: of the last step.
        growths: ways in which ``net_d`` has grown.

    Raises:
        ValueError: for an invalid ``micro_batch_size``. The first step raises NotExact where its update would not be that of
            the whole batch.
    """

    def __init__(self, net_g: Settings, net_d: Settings, gan_loss: Settings,
                 pixel_loss: Settings | None = None, perceptual_loss: Settings | None = None,
                 micro_batch_size: int | dict[str, int] = 1, kept_graphs: int = 0, relativistic_gan: bool = True,
                 ema_decay: float = 0.0, data_preprocessor: Settings | None = None,
                 accumulation: str = 'exact', verify_every: int | None = 0, tf32: bool | None = None) -> None:
        super().__init__(data_preprocessor or {'type': 'HostDataPreprocessor'})
        set_tf32(tf32)
        self.net_g, self.net_d = MODELS.build(net_g), MODELS.build(net_d)
        self.net_g_ema = copy.deepcopy(self.net_g).requires_grad_(False) if ema_decay else None
        pixel, perceptual, gan = (_loss(settings) for settings in (pixel_loss, perceptual_loss, gan_loss))
        self.gan_loss: Any = gan
        self.losses = HostLosses('l_g_', pixel, perceptual)
        self.first_plan = StepPlan.of(micro_batch_size, kept_graphs, exact=accumulation == 'exact')
        self.relativistic_gan, self.ema_decay, self.verify_every = relativistic_gan, ema_decay, verify_every
        self.growths: list[str] = []
        self.step: AdversarialStep | None = None
        self.report: StepReport | None = None

    def forward(self, lq: Tensor, mode: str = 'tensor', **kwargs: Any) -> Tensor:
        """The (averaged) generator's image of ``lq``."""
        net = self.net_g if self.training or self.net_g_ema is None else self.net_g_ema
        image: Tensor = net(lq.to(next(net.parameters()).device))
        return image

    def train_step(self, data: dict[str, Tensor], optim_wrapper: OptimWrapperDict) -> dict[str, Tensor]:
        """Make one update from a whole batch; returns what is to be logged.

        Args:
            data: ``lq`` and ``gt``.
            optim_wrapper: one ``OverflowSafeOptimWrapper`` each for ``net_g`` and ``net_d``.
        """
        data = self.data_preprocessor(data, True)
        if self.step is None:
            self.step = self._step(optim_wrapper)
        self.report = self.step(data['lq'], data['gt'])
        say(self.report)
        tick(optim_wrapper)
        if self.net_g_ema is not None and self.report.verdicts.get('g') is Verdict.COMMITTED:
            with torch.no_grad():
                for mean, value in zip(self.net_g_ema.parameters(), self.net_g.parameters(), strict=True):
                    mean.lerp_(value, 1 - self.ema_decay)
        return logged(self.report, optim_wrapper)

    def _step(self, optim_wrapper: OptimWrapperDict) -> AdversarialStep:
        arrange(self.net_g, self.net_g_ema, self.net_d, self.losses.extractor)  # they are on their device by now
        wrapper_g, wrapper_d = optim_wrapper['net_g'], optim_wrapper['net_d']
        step = AdversarialStep(self.net_g, self.net_d, wrapper_g.safe_update, wrapper_d.safe_update, self.losses,
                               self.gan_loss, plan=self.first_plan, relativistic=self.relativistic_gan,
                               dtype=wrapper_g.cast_dtype, verify_every=self.verify_every)
        wrapper_g.adopt(step)
        return step

    def val_step(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """A dict with ``pred`` and, where there is one, ``gt`` for each image, on the CPU."""
        with torch.no_grad():
            images = self(data['lq']).float().cpu()
        others = data.get('gt')
        return [{'pred': image, **({} if others is None else {'gt': others[index].cpu()})}
                for index, image in enumerate(images)]

    test_step = val_step

    def replan(self, first_size: int, gt_size: int) -> None:
        """Cut the batch as crops of ``gt_size`` need it, when ``first_plan`` was made for ``first_size``."""
        replan(self, first_size, gt_size)


def say(report: StepReport) -> None:
    """Tell the Runner's log what happened in a step."""
    for event in report.events:
        print_log(f'{event.kind} ({event.part}): {event.text}', 'current', logging.WARNING)


def logged(report: StepReport, optim_wrapper: OptimWrapperDict) -> dict[str, Tensor]:
    """What the Runner logs: losses and, once it is known, the noise scale of each network's gradient, in images.

    The Runner reads every number after every iteration, so that this waits for nothing that it would not wait for.
    """
    scales = {f'noise_scale_{name}': wrapper.safe_update.noise.value for name, wrapper in optim_wrapper.items()}
    return {**{name: value.detach() for name, value in report.losses.items()},
            **{name: torch.tensor(value) for name, value in scales.items() if value is not None}}


def tick(optim_wrapper: OptimWrapperDict) -> None:
    """Count a step where mmengine's schedulers look for it; ours does not go through the wrapper's own ``step``."""
    for wrapper in optim_wrapper.values():
        wrapper._global_step = getattr(wrapper, '_global_step', 0) + 1


def replan(model: Any, first_size: int, gt_size: int) -> None:
    """Have a model with ``first_plan`` and ``step`` cut its batch as crops of ``gt_size`` need it."""
    micro = model.first_plan.micro.for_crop(first_size, gt_size)
    if model.step is None:
        model.first_plan = replace(model.first_plan, micro=micro)
        return
    model.step.plan = replace(model.first_plan, micro=replace(micro, **dict.fromkeys(model.step.uncuttable_parts, WHOLE)))


def _loss(settings: Settings | None) -> nn.Module | None:
    if settings is None:
        return None
    if settings['type'] in MODELS:
        loss: nn.Module = MODELS.build(settings)
    else:
        from basicsr.losses import build_loss  # not installed beside every mmagic
        loss = build_loss(dict(settings))
    return loss


@MODEL_WRAPPERS.register_module()
class GradientsBelongToTheStep(nn.Module):
    """Stands in the place of DistributedDataParallel: our step itself sums gradients over the processes.

    ``model_wrapper_cfg = dict(type='GradientsBelongToTheStep')``

    Args:
        module: the model.
        **kwargs: what mmengine gives to every wrapper; not looked at.
    """

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.module = module
        same_everywhere(module)

    def train_step(self, data: Any, optim_wrapper: OptimWrapperDict) -> Any:
        """That of the model."""
        return self.module.train_step(data, optim_wrapper)  # type: ignore[operator]

    def val_step(self, data: Any) -> Any:
        """That of the model."""
        return self.module.val_step(data)  # type: ignore[operator]

    def test_step(self, data: Any) -> Any:
        """That of the model."""
        return self.module.test_step(data)  # type: ignore[operator]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OptimWrapperPerNetwork:
    """Builds an optimizer wrapper for each network that the settings name: ``dict(net_g=dict(...), net_d=dict(...))``.

    Args:
        optim_wrapper_cfg: by name of the network, the settings of its wrapper; ``type`` is OverflowSafeOptimWrapper where
            none is given.
        paramwise_cfg: must be None.
    """

    def __init__(self, optim_wrapper_cfg: Settings, paramwise_cfg: Settings | None = None) -> None:
        if paramwise_cfg:
            raise ValueError('OptimWrapperPerNetwork has one learning rate a network: leave out paramwise_cfg')
        self.settings = optim_wrapper_cfg

    def __call__(self, module: nn.Module) -> OptimWrapperDict:
        """The wrappers for a model."""
        module = module.module if is_model_wrapper(module) else module  # type: ignore[assignment]
        wrappers: dict[str, Any] = {}
        for name, given in self.settings.items():
            settings = copy.deepcopy(dict(given))
            parameters: Sequence[nn.Parameter] = list(getattr(module, name).parameters())
            optimizer = OPTIMIZERS.build({**settings.pop('optimizer'), 'params': parameters})
            wrappers[name] = OPTIM_WRAPPERS.build({'type': 'OverflowSafeOptimWrapper', **settings, 'optimizer': optimizer})
        return OptimWrapperDict(**wrappers)
