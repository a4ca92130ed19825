"""What our models find in those of BasicSR, which have no annotations: for the type checker alone."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from sr_bigbatch.hosts.basicsr.settings import Options


class Batch(TypedDict):
    """What a loader of BasicSR hands out: images and the paths of their files."""

    lq: Tensor
    gt: NotRequired[Tensor]
    lq_path: NotRequired[list[str | Path]]
    gt_path: NotRequired[list[str | Path]]
    unreadable: NotRequired[list[str]]


class OurState(TypedDict):
    """Our part of a training state."""

    step: Options
    events: dict[str, int]
    growths: list[str]
    idle: list[int]
    batch: int | None
    seed: NotRequired[int | None]
    best: NotRequired[dict[str, dict[str, Options]]]
    fingerprint: NotRequired[Mapping[str, Any] | None]
    data: NotRequired[Mapping[str, Any] | None]


class TrainingState(TypedDict):
    """A training state of BasicSR's, with or without our part."""

    epoch: int
    iter: int
    optimizers: list[Options]
    schedulers: list[Options]
    sr_bigbatch: NotRequired[OurState]


class HostModel:
    """BasicSR's ``SRModel`` and ``ESRGANModel``, as far as we use them."""

    opt: Options
    device: torch.device
    is_train: bool
    net_g: nn.Module
    net_g_ema: nn.Module
    net_d: nn.Module
    cri_pix: nn.Module | None
    cri_perceptual: nn.Module | None
    cri_ldl: nn.Module | None
    cri_gan: nn.Module
    net_d_iters: int
    net_d_init_iters: int
    ema_decay: float
    optimizers: list[torch.optim.Optimizer]
    optimizer_d: torch.optim.Optimizer
    schedulers: Sequence[Any]
    lq: Tensor
    gt: Tensor
    output: Tensor | None
    metric_results: dict[str, float]
    best_metric_results: dict[str, dict[str, Options]]

    def __init__(self, opt: Options) -> None:
        """Build networks and, for a training, losses and optimizers."""
        raise NotImplementedError

    def init_training_settings(self) -> None:
        """Build what a training needs."""
        raise NotImplementedError

    def model_ema(self, decay: float) -> None:
        """Move the averaged generator."""
        raise NotImplementedError

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Move the schedules on."""
        raise NotImplementedError

    def test(self) -> None:
        """Generate :attr:`output` from :attr:`lq`."""
        raise NotImplementedError

    def save(self, epoch: int, current_iter: int) -> None:
        """Save networks and training state."""
        raise NotImplementedError

    def resume_training(self, resume_state: TrainingState) -> None:
        """Restore optimizers and schedulers."""
        raise NotImplementedError

    def get_current_visuals(self) -> dict[str, Tensor]:
        """Images of the last batch that was fed: ``lq``, ``result`` and, where there is one, ``gt``, on the CPU."""
        raise NotImplementedError

    def _print_different_keys_loading(self, crt_net: nn.Module, load_net: dict[str, Tensor], strict: bool) -> None:
        raise NotImplementedError
