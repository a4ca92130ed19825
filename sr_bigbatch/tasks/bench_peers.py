"""Makes one update of a large batch in parts, as other trainers make it, and measures how far it is from the undivided one.

Each trainer's rule is written anew, in a few lines. What is compared is the rule for accumulation alone: networks, losses,
images and optimizers are the same for all.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
import torch
from skimage.io import imread
from torch import Tensor, nn
from torch.nn import functional as F

from sr_bigbatch.nets.rrdb import CheckpointedRRDBNet
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.tasks.prepare import BUNDLED_TRAIN, bundled

SIZE, SCALE = 32, 4
_PIXEL, _GAN = 1e-2, 5e-3  # weights of ESRGAN's losses
_WARM_UP = 100  # updates of the generator with the pixel loss alone
_SPREAD = 3.0  # standard deviation of a trained discriminator's logits


@dataclass
class Pair:
    """A generator and a discriminator, each with Adam as in ESRGAN, before its first step."""

    net_g: nn.Module
    net_d: nn.Module

    def __post_init__(self) -> None:
        self.opt_g, self.opt_d = (torch.optim.Adam(net.parameters(), 1e-4, (0.9, 0.99)) for net in (self.net_g, self.net_d))

    def twin(self) -> Pair:
        """The same networks again."""
        return Pair(copy.deepcopy(self.net_g), copy.deepcopy(self.net_d))


@dataclass(frozen=True)
class Game:
    """Which losses the networks play for, and what the discriminator normalises with."""

    relativistic: bool
    batch_norm: bool

    def __str__(self) -> str:
        return f'{"relativistic" if self.relativistic else "plain"} GAN, {"BatchNorm" if self.batch_norm else "no norm"}'

    def g_loss(self, fake: Tensor, real: Tensor) -> Tensor:
        """The generator's adversarial loss of logits; ``real`` is a constant."""
        if not self.relativistic:
            return _bce(fake, True)
        return (_bce(real - fake.mean(), False) + _bce(fake - real.mean(), True)) / 2

    def d_loss(self, fake: Tensor, real: Tensor) -> Tensor:
        """The discriminator's loss of logits, its two halves as in BasicSR."""
        if not self.relativistic:
            return _bce(real, True) + _bce(fake, False)
        return (_bce(real - fake.mean().detach(), True) + _bce(fake - real.mean().detach(), False)) / 2


GAMES = tuple(Game(relativistic, norm) for norm in (False, True) for relativistic in (False, True))


def _bce(logits: Tensor, is_real: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))


def _learn_g(pair: Pair, game: Game, output: Tensor, gt: Tensor, weight: float, gan: float = _GAN) -> None:
    pair.net_d.requires_grad_(False)
    with torch.no_grad():
        real = pair.net_d(gt)
    (weight * (_PIXEL * F.l1_loss(output, gt) + gan * game.g_loss(pair.net_d(output), real))).backward()
    pair.net_d.requires_grad_(True)


def _learn_d(pair: Pair, game: Game, output: Tensor, gt: Tensor, weight: float) -> None:
    (weight * game.d_loss(pair.net_d(output.detach()), pair.net_d(gt))).backward()


def _commit(*optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def undivided(pair: Pair, game: Game, lq: Tensor, gt: Tensor, size: int) -> None:
    """The update that is meant: the whole batch at once (``size`` is not used)."""
    accumulated(pair, game, lq, gt, len(lq))


def ours(pair: Pair, game: Game, lq: Tensor, gt: Tensor, size: int) -> None:
    """Our step. A discriminator with BatchNorm sees the whole batch; the generator works in parts."""
    def gan_loss(logits: Tensor, is_real: bool, is_disc: bool) -> Tensor:
        return _bce(logits, is_real) * (1 if is_disc else _GAN)

    micro = {'generator': size, 'perceptual': size, 'discriminator': len(lq) if game.batch_norm else size}
    AdversarialStep(pair.net_g, pair.net_d, pair.opt_g, pair.opt_d,
                    lambda output, gt, lq: {'l_g_pix': _PIXEL * F.l1_loss(output, gt)}, gan_loss, micro_batch_size=micro,
                    relativistic=game.relativistic)(lq, gt)


def accumulated(pair: Pair, game: Game, lq: Tensor, gt: Tensor, size: int) -> None:
    """Plain accumulation: each part is a batch of its own, its loss is divided by the number of parts."""
    for _ in _learn_parts(pair, game, lq, gt, size):
        pass
    _commit(pair.opt_g, pair.opt_d)


def _learn_parts(pair: Pair, game: Game, lq: Tensor, gt: Tensor, size: int, gan: float = _GAN) -> Iterator[bool]:
    """Accumulate the gradients of one part after another; after each, whether these are half of the parts, or all."""
    parts = len(lq) // size
    for number, (low, truth) in enumerate(zip(lq.split(size), gt.split(size), strict=True), 1):
        output = pair.net_g(low)
        _learn_g(pair, game, output, truth, 1 / parts, gan)
        _learn_d(pair, game, output, truth, 1 / parts)
        yield 2 * number % parts == 0


def sync_batch_norm(pair: Pair, game: Game, lq: Tensor, gt: Tensor, size: int) -> None:
    """Two processes with SyncBatchNorm, which accumulate: two parts share statistics, but not the mean of logits."""
    for part in range(0, len(lq), 2 * size):
        output, truth = pair.net_g(lq[part:part + 2 * size]), gt[part:part + 2 * size]
        pair.net_d.requires_grad_(False)
        with torch.no_grad():
            real = pair.net_d(truth)
        weight = size / len(lq)  # of a process: the mean of the gradients of both is taken
        loss = 2 * weight * _PIXEL * F.l1_loss(output, truth)
        for fake_part, real_part in zip(pair.net_d(output).split(size), real.split(size), strict=True):
            loss = loss + weight * _GAN * game.g_loss(fake_part, real_part)
        loss.backward()
        pair.net_d.requires_grad_(True)
        logits = zip(pair.net_d(output.detach()).split(size), pair.net_d(truth).split(size), strict=True)
        sum((weight * game.d_loss(fake_part, real_part) for fake_part, real_part in logits), torch.zeros(())).backward()
    _commit(pair.opt_g, pair.opt_d)


def neosr(pair: Pair, game: Game, lq: Tensor, gt: Tensor, size: int) -> None:
    """An even ``accumulate`` counts each part twice, and the adversarial loss of the generator has no gradient."""
    for steps in _learn_parts(pair, game, lq, gt, size, gan=0.0):
        if steps:
            _commit(pair.opt_g, pair.opt_d)


def mmagic(pair: Pair, game: Game, lq: Tensor, gt: Tensor, size: int) -> None:
    """``accumulative_counts`` counts the two backward passes of the discriminator as two parts."""
    for steps in _learn_parts(pair, game, lq, gt, size):
        if steps:
            _commit(pair.opt_d)
    _commit(pair.opt_g)


@dataclass(frozen=True)
class Peer:
    """A trainer: how it makes an update, which version was read, and whether it has a relativistic loss."""

    name: str
    read: str
    update: Callable[[Pair, Game, Tensor, Tensor, int], None]
    relativistic: bool = True


PEERS = (
    Peer('sr_bigbatch', 'this version', ours),
    Peer('accumulation by hand (Lightning, accelerate)', 'Lightning 2.5, accelerate 1.4', accumulated),
    Peer('2 processes, SyncBatchNorm, accumulation', 'torch 2.6', sync_batch_norm),
    Peer('DLAS mega_batch_factor', 'f31a333', accumulated),
    Peer('traiNNer-redux accum_iter', '6862931', accumulated, relativistic=False),
    Peer('neosr accumulate', '31c7022', neosr, relativistic=False),
    Peer('mmagic accumulative_counts', '0a560bb, mmengine 2543429', mmagic),
)


def start(game: Game, batch: int, seed: int = 0) -> tuple[Pair, Tensor, Tensor]:
    """Networks and the images of an update, as in mid-training: the discriminator errs, and is sure of itself."""
    torch.manual_seed(seed)
    pair = Pair(CheckpointedRRDBNet(3, 3, SCALE, 8, 1, 8).double(),
                GrowableVGGDiscriminator(3, 16, SIZE, 'batch' if game.batch_norm else 'none').double())
    numbers = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(pair.net_g.parameters(), 2e-3)
    for _ in range(_WARM_UP):
        lq, gt = _crops(8, numbers)
        F.l1_loss(pair.net_g(lq), gt).backward()
        _commit(optimizer)
    for layer in pair.net_d.modules():  # without this, what a new discriminator says hardly depends on the image
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
    lq, gt = _crops(batch, numbers)
    with torch.no_grad():
        images, last = torch.cat([pair.net_g(lq), gt]), cast(nn.Linear, pair.net_d.linear2)
        last.weight.mul_(_SPREAD / pair.twin().net_d(images).std())
        last.bias.sub_(pair.twin().net_d(images).mean())
    return pair, lq, gt


@cache
def _photographs() -> list[np.ndarray]:
    return [imread(path) for path in bundled(BUNDLED_TRAIN)]


def _crops(count: int, numbers: np.random.Generator) -> tuple[Tensor, Tensor]:
    photographs, crops = _photographs(), []
    for _ in range(count):
        photograph = photographs[numbers.integers(len(photographs))]
        top, left = (int(numbers.integers(length - SIZE)) for length in photograph.shape[:2])
        crops.append(torch.from_numpy(photograph[top:top + SIZE, left:left + SIZE]))
    gt = torch.stack(crops).permute(0, 3, 1, 2).double() / 255
    return F.interpolate(gt, scale_factor=1 / SCALE, mode='bicubic', antialias=True).clamp(0, 1), gt


def distances(game: Game, peers: Sequence[Peer] = PEERS, batch: int = 8,
              size: int = 2) -> dict[str, tuple[float, float] | None]:
    """How far the update of each peer is from the undivided one.

    Args:
        game: losses and norm.
        peers: the trainers.
        batch: samples of the effective batch.
        size: samples of a part; ``batch / size`` is even.

    Returns:
        For each name the distance of generator and discriminator in units of the undivided update's length (2-norm over all
        parameters); None for a trainer without this loss.
    """
    before, lq, gt = start(game, batch)
    expected = before.twin()
    undivided(expected, game, lq, gt, batch)
    found: dict[str, tuple[float, float] | None] = {}
    for peer in peers:
        found[peer.name] = None
        if peer.relativistic or not game.relativistic:
            pair = before.twin()
            peer.update(pair, game, lq, gt, size)
            found[peer.name] = (_distance(pair.net_g, expected.net_g, before.net_g),
                                _distance(pair.net_d, expected.net_d, before.net_d))
    return found


@torch.no_grad()
def _distance(net: nn.Module, expected: nn.Module, before: nn.Module) -> float:
    ours, meant, origin = (nn.utils.parameters_to_vector(each.parameters()) for each in (net, expected, before))
    return float((ours - meant).norm() / (meant - origin).norm())
