"""Our parts under the names and arguments that mmagic's configurations use.

``custom_imports = dict(imports=['sr_bigbatch.hosts.mmengine.mmagic'])``
"""
from __future__ import annotations

from typing import Any

import torch
from mmagic.datasets.transforms import PairedRandomCrop
from mmagic.models.editors.esrgan import ESRGAN
from mmagic.registry import MODELS, TRANSFORMS
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapperDict
from torch import Tensor

from sr_bigbatch.hosts.losses import HostLosses
from sr_bigbatch.hosts.mmengine.model import logged, replan, say, tick
from sr_bigbatch.hosts.mmengine.types import Settings
from sr_bigbatch.nets import rrdb, vgg_discriminator
from sr_bigbatch.nets.arrangement import arrange
from sr_bigbatch.progressive.crop_size import CropSize
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.arithmetic import set_tf32
from sr_bigbatch.step.plan import StepPlan


@MODELS.register_module(name='CheckpointedRRDBNet')
class MMagicRRDBNet(rrdb.CheckpointedRRDBNet, BaseModule):  # type: ignore[misc]
    """mmagic's ``RRDBNet``: its arguments and state-dict keys, a fraction of the memory.

    Args:
        in_channels, out_channels, mid_channels, num_blocks, growth_channels, upscale_factor: as in mmagic.
        activation_memory: see :class:`sr_bigbatch.nets.rrdb.CheckpointedRRDBNet`.
        init_cfg: as in mmagic.
    """

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int = 64, num_blocks: int = 23,
                 growth_channels: int = 32, upscale_factor: int = 4, activation_memory: str | dict[str, int] = 'lean',
                 init_cfg: Settings | None = None) -> None:
        rrdb.CheckpointedRRDBNet.__init__(self, in_channels, out_channels, upscale_factor, mid_channels, num_blocks,
                                          growth_channels, activation_memory)
        self._is_init, self.init_cfg = False, init_cfg


@MODELS.register_module(name='GrowableVGGDiscriminator')
class MMagicVGGDiscriminator(vgg_discriminator.GrowableVGGDiscriminator):
    """mmagic's ``ModifiedVGG``: its arguments and state-dict keys, for any size and norm.

    Args:
        in_channels, mid_channels: as in mmagic.
        input_size, norm: see :class:`sr_bigbatch.nets.vgg_discriminator.GrowableVGGDiscriminator`.
    """

    def __init__(self, in_channels: int, mid_channels: int, input_size: int = 128, norm: str = 'batch') -> None:
        super().__init__(in_channels, mid_channels, input_size, norm)


@TRANSFORMS.register_module()
class ProgressivePairedRandomCrop(PairedRandomCrop):  # type: ignore[misc]
    """mmagic's ``PairedRandomCrop`` with a size that ProgressiveResolutionHook can change while workers live.

    Args:
        gt_patch_size: first crop size, in pixels of the ground truth.
        **kwargs: as in mmagic.
    """

    def __init__(self, gt_patch_size: int, **kwargs: Any) -> None:
        super().__init__(gt_patch_size, **kwargs)
        self.crop_size = CropSize(gt_patch_size)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crop a pair."""
        self.gt_patch_size = self.crop_size.pixels
        cropped: dict[str, Any] = super().transform(results)
        return cropped


@MODELS.register_module()
class AccumulatingMMagicESRGAN(ESRGAN):  # type: ignore[misc]
    """mmagic's ``ESRGAN`` at an effective batch of any size, with the update of the undivided batch.

    One iteration is one effective batch and one update of each network. Do not set ``accumulative_counts``: with it mmagic
    counts every iteration twice for its discriminator, and takes relativistic means over parts of the batch.

    Args:
        micro_batch_size, kept_graphs, accumulation, verify_every, tf32: see
            :class:`sr_bigbatch.hosts.mmengine.model.AccumulatingESRGAN`.
        **kwargs: as in mmagic; ``optim_wrapper`` needs an OverflowSafeOptimWrapper for ``generator`` and ``discriminator``.
    """

    def __init__(self, micro_batch_size: int | dict[str, int] = 1, kept_graphs: int = 0, accumulation: str = 'exact',
                 verify_every: int | None = 0, tf32: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        set_tf32(tf32)
        self.first_plan = StepPlan.of(micro_batch_size, kept_graphs, exact=accumulation == 'exact')
        self.verify_every = verify_every
        self.accumulating: AdversarialStep | None = None
        self.growths: list[str] = []

    @property
    def step(self) -> AdversarialStep | None:
        """What makes the updates; None before the first."""
        return self.accumulating

    def train_step(self, data: dict[str, Any], optim_wrapper: OptimWrapperDict) -> dict[str, Tensor]:
        """Make one update of each network, as far as mmagic's ``disc_steps`` and ``disc_init_steps`` say so."""
        data = self.data_preprocessor(data, True)
        gt = self.extract_gt_data(data['data_samples'])
        if self.accumulating is None:
            self.accumulating = self._build(optim_wrapper)
        with torch.no_grad():
            runs_g = bool(self.if_run_g())
        report = self.accumulating(data['inputs'], gt, update_g=runs_g)
        self.step_counter += 1
        say(report)
        tick(optim_wrapper)
        return logged(report, optim_wrapper)

    def _build(self, optim_wrapper: OptimWrapperDict) -> AdversarialStep:
        wrappers = [optim_wrapper[name] for name in ('generator', 'discriminator')]
        losses = HostLosses('loss_', self.pixel_loss, self.perceptual_loss)
        arrange(self.generator, self.discriminator, losses.extractor)  # they are on their device by now
        step = AdversarialStep(self.generator, self.discriminator, wrappers[0].safe_update, wrappers[1].safe_update, losses,
                               self.gan_loss, plan=self.first_plan, dtype=wrappers[0].cast_dtype,
                               verify_every=self.verify_every)
        wrappers[0].adopt(step)
        return step

    def replan(self, first_size: int, gt_size: int) -> None:
        """Cut the batch as crops of ``gt_size`` need it, when the plan was made for ``first_size``."""
        replan(self, first_size, gt_size)
