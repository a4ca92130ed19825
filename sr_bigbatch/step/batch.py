"""A batch on its way through a step.

Shapes: B effective batch of this process, M micro-batch, lq (B, C, h, w), gt and generated images (B, C, H, W), logits
(M, ...).
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sr_bigbatch.step.distributed import my_samples, sum_in_place
from sr_bigbatch.step.gan_loss import Grades
from sr_bigbatch.step.plan import length
from sr_bigbatch.step.replay import Snapshot
from sr_bigbatch.step.sample_losses import LossSums
from sr_bigbatch.step.update import Verdict


@dataclass
class Draft:
    """One micro-batch of generated images; ``graph`` is None where the forward pass will be replayed from ``before``."""

    samples: slice
    before: Snapshot | None
    graph: Tensor | None


@dataclass
class Judged:
    """One micro-batch seen by the discriminator; the graphs are None where the passes will be replayed from ``before``."""

    samples: slice
    before: Snapshot | None
    real: Tensor
    fake: Tensor
    graphs: tuple[Tensor, Tensor, Tensor] | None = None  # real logits, generated images (leaf), their logits


class Images:
    """The images of a batch. They go to the device once a step, however often the step uses them or begins again.

    Args:
        lq: (B, C, h, w), on any device. From pinned memory it is copied without waiting; other memory is pinned first.
        gt: (B, C, H, W), likewise.
        device: of the networks.
    """

    def __init__(self, lq: Tensor, gt: Tensor, device: torch.device) -> None:
        self.lq, self.gt, self.device = lq, gt, device
        self._there: tuple[Tensor, Tensor] | None = None

    def on_device(self) -> tuple[Tensor, Tensor]:
        """Both on the device; copied when asked for the first time."""
        if self._there is None:
            self._there = self._copied(self.lq), self._copied(self.gt)
        return self._there

    def _copied(self, images: Tensor) -> Tensor:
        if self.device.type == 'cuda' and images.device.type == 'cpu' and not images.is_pinned():
            with suppress(RuntimeError):  # the system may not let so much memory be pinned
                images = images.pin_memory()  # a copy from pageable memory waits for the device
        return images.to(self.device, non_blocking=True)


@dataclass
class Batch:
    """A batch on its device and everything that a step finds out about it.

    Attributes:
        sizes: samples of each process, in the order of their ranks.
    """

    lq: Tensor
    gt: Tensor
    sizes: Sequence[int]
    fake: Tensor = field(init=False)
    drafts: list[Draft] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    grades: list[Grades] = field(default_factory=list)  # one for each of judged; the losses are those of the whole batch
    sums: LossSums = field(default_factory=LossSums)
    image_gradient: Tensor = field(init=False)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fake = torch.empty(self.gt.shape, dtype=self.gt.dtype, device=self.device)

    @property
    def device(self) -> torch.device:
        """Of the networks, too."""
        return self.gt.device

    def __len__(self) -> int:
        return int(self.gt.shape[0])

    @property
    def total(self) -> int:
        """Samples of all processes."""
        return sum(self.sizes)

    @property
    def mine(self) -> slice:
        """Where the samples of this process stand among those of all."""
        return my_samples(self.sizes)

    @property
    def everything(self) -> slice:
        """The slice of all samples of this process."""
        return slice(0, len(self))

    def losses(self, update_g: bool) -> dict[str, Tensor]:
        """All losses and mean logits of the whole batch of all processes; those of G only if it was its turn."""
        losses = dict(self.sums.values)
        if update_g:
            losses['l_g_gan'] = self.grades[0].g_loss
        losses['l_d_real'], losses['l_d_fake'] = self.grades[0].d_real_loss, self.grades[0].d_fake_loss
        for name, kind in (('out_d_real', 'real'), ('out_d_fake', 'fake')):
            means = [getattr(part, kind).mean() * (length(part.samples) / self.total) for part in self.judged]
            mean = torch.stack(means).sum()
            sum_in_place([mean])
            losses[name] = mean
        return losses
