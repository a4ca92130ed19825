"""Networks, losses and optimizers that a divided update could get wrong, each with the one outcome that is right.

A row is either exact, or refused with a text that names the part and the reason. The tests of this folder run every row in
each host.
"""
from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from basicsr.archs.ecbsr_arch import ECBSR
from basicsr.archs.swinir_arch import SwinIR
from basicsr.losses.basic_loss import L1Loss
from basicsr.losses.gan_loss import GANLoss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.step import coupling_layers as layers

CUT = {'generator': 2, 'perceptual': 1, 'discriminator': 3}  # three numbers: one number leaves the choice to the step
D_WHOLE = {**CUT, 'discriminator': 8}
G_WHOLE = {**CUT, 'generator': 8}
ALL_WHOLE = {'generator': 8, 'perceptual': 8, 'discriminator': 8}


class Strange(nn.Sequential):
    """Of this module, so that what is remembered about networks of torch (tests/conftest.py) is not taken for it."""


def generator(*parts: nn.Module, channels: int = 3, kind: type[nn.Sequential] = Strange) -> nn.Module:
    """Enlarges four times; ``parts`` work on 8 feature maps."""
    return kind(nn.Conv2d(channels, 8, 3, 1, 1), nn.LeakyReLU(0.2), *parts, nn.Conv2d(8, 16 * channels, 3, 1, 1),
                nn.PixelShuffle(4))


def discriminator(*parts: nn.Module, features: int = 8, channels: int = 3, kind: type[nn.Sequential] = Strange) -> nn.Module:
    """One logit for an image of any size; ``parts`` make ``features`` maps out of 8."""
    last = nn.Linear(features, 1)
    with torch.no_grad():
        last.weight.mul_(20)  # logits spread as those of a trained discriminator, so that their mean matters
    return kind(nn.Conv2d(channels, 8, 4, 2, 1), nn.LeakyReLU(0.2), *parts, nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1),
                nn.Flatten(), last)


def plain_generator() -> nn.Module:
    return generator(kind=nn.Sequential)


def plain_discriminator() -> nn.Module:
    return discriminator(kind=nn.Sequential)


class Loss(nn.Module):
    """A function of output and gt as a pixel loss."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, output: Tensor, gt: Tensor, weight: Tensor | None = None, **kwargs: Any) -> Tensor:
        return self.function(output, gt)


class OwnMean(nn.Module):
    """Divided by its own running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('mean', torch.ones(()))

    def forward(self, output: Tensor, gt: Tensor, **kwargs: Any) -> Tensor:
        loss = F.l1_loss(output, gt)
        self.mean.mul_(0.9).add_(0.1 * loss.detach())
        return loss / self.mean


class WeightOfCall(nn.Module):
    """Its weight grows from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, output: Tensor, gt: Tensor, **kwargs: Any) -> Tensor:
        self.calls += 1
        return F.l1_loss(output, gt) * (1 + 1e-3 * self.calls)


class ForeignPerceptual(nn.Module):
    """A perceptual loss with features of its own and without BasicSR's ``vgg``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Conv2d(3, 4, 3, 2, 1).requires_grad_(False)

    def forward(self, output: Tensor, gt: Tensor) -> tuple[Tensor, None]:
        return F.l1_loss(self.features(output), self.features(gt)), None


class MultiScale(nn.Module):
    """Works on images of 64 px or more, as MS-SSIM does."""

    def forward(self, output: Tensor, gt: Tensor, **kwargs: Any) -> Tensor:
        if output.shape[-1] < 64:
            raise ValueError('images must be at least 64 px wide')
        return sum((F.l1_loss(F.avg_pool2d(output, 2**scale), F.avg_pool2d(gt, 2**scale)) for scale in range(5)),
                   output.new_zeros(()))


def positive_pixels(output: Tensor, gt: Tensor) -> Tensor:
    return (output - gt)[gt > 0.5].abs().mean()


def _each(output: Tensor, gt: Tensor) -> Tensor:
    return (output - gt).abs().mean((1, 2, 3))


def functional_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


class Uncopyable(nn.Module):
    """Holds what ``deepcopy`` refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return x


class Branches(nn.Module):
    """ClassSR's idea: each image goes the way that its content asks for; some weights get no gradient."""

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.easy, self.hard, self.threshold = nn.Conv2d(3, 48, 1), nn.Conv2d(3, 48, 3, 1, 1), threshold
        self.shuffle = nn.PixelShuffle(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.shuffle((self.hard if image.mean().item() > self.threshold else self.easy)(image[None]))
                          for image in x])


class Reading(nn.Module):
    """A layer with a weight of its own that reads its ``training`` flag."""

    def __init__(self, use: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.weight, self.use = nn.Parameter(torch.randn(8, 8, 3, 3) / 8), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(F.conv2d(x, self.weight, padding=1), self.training)


class Constants(nn.Module):
    """Multiplies by a plain tensor, which no ``.double()`` reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.linspace(0.5, 1, 8).view(1, 8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mean


class CastsToFloat32(nn.Module):
    """Filters with a kernel that is float32 whatever its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.ones(8, 1, 3, 3) / 9

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.float(), self.kernel, padding=1, groups=8)


class Fourier(nn.Module):
    """Filters the spectrum of each feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.ones(8, 1, 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.fft.irfft2(torch.fft.rfft2(x) * self.filter, s=x.shape[-2:])


class Volume(nn.Module):
    """Takes the feature maps as one volume."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, None])[:, 0]


class OneScalar(nn.Module):
    """A discriminator with one number for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = plain_discriminator()

    def forward(self, x: Tensor) -> Tensor:
        return self.judge(x).mean()


class Averaging(torch.optim.AdamW):
    """Keeps an average of its own that every call of ``step`` moves, as schedule-free optimizers do."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, lr=lr, eps=1e-2)

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group['params']:
                state = self.state[parameter]
                state['steps'] = state.get('steps', 0) + 1
                average = state.get('average', parameter.detach().clone())
                state['average'] = average.lerp(parameter.detach(), 1 / state['steps'])
                parameter.data.lerp_(state['average'], 0.1)


class Momentum(torch.optim.SGD):
    """SGD: its update is the gradient, so that no difference hides behind a normalisation."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, lr=lr, momentum=0.9)


def _double(net: nn.Module) -> nn.Module:
    """In float64; complex parameters in complex128, of which ``Module.double`` would take the imaginary part away."""
    return net._apply(lambda tensor: tensor.to(torch.complex128) if tensor.is_complex() else
                      tensor.double() if tensor.is_floating_point() else tensor)


@dataclass(frozen=True)
class Row:
    """A training and its one right outcome.

    Attributes:
        host_pixel: what the undivided update uses in the place of ``pixel``; None for the same.
        micro: setting of ``micro_batch_size``.
        refused: what the refusal must say; None: the update is exact.
        batches: samples of each update; a refused row is refused at the last.
        wire: changes the networks after they were built.
        clip: ``clip_grad`` of the wrappers.
        size: of the ground truth, in px.
        later_size: likewise, from the second update on.
    """

    net_g: Callable[[], nn.Module] = plain_generator
    net_d: Callable[[], nn.Module] = plain_discriminator
    pixel: Callable[[], nn.Module] | None = L1Loss
    perceptual: Callable[[], nn.Module] | None = None
    host_pixel: Callable[[], nn.Module] | None = None
    micro: int | dict[str, int] = 2
    refused: str | None = None
    batches: Sequence[int] = (5,)
    size: int = 16
    later_size: int | None = None
    channels: int = 3
    optimizer: type[torch.optim.Optimizer] = Momentum
    clip: dict[str, Any] | None = None
    wire: Callable[[nn.Module, nn.Module], None] | None = None
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-10

    def network(self, part: str) -> nn.Module:
        """The network ``'g'`` or ``'d'``, each time with the same weights."""
        torch.manual_seed({'g': 1, 'd': 2}[part])
        net = self.net_g() if part == 'g' else self.net_d()
        return _double(net) if self.dtype is torch.float64 else net

    def loss(self, part: str) -> nn.Module | None:
        """The ``'pixel'`` or ``'perceptual'`` loss."""
        kind = self.pixel if part == 'pixel' else self.perceptual
        return None if kind is None else kind().to(self.dtype)

    def gan_loss(self) -> nn.Module:
        return GANLoss('vanilla', 1.0, 0.0, 0.1).to(self.dtype)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """lq and gt of an update; some images are dark and some bright."""
        random_numbers = torch.Generator().manual_seed(10 + number)
        count, size = self.batches[number], self.later_size or self.size if number else self.size
        light = torch.linspace(0.2, 1.6, count, dtype=self.dtype).view(-1, 1, 1, 1)
        lq, gt = (light * torch.rand(count, self.channels, side, side, generator=random_numbers, dtype=self.dtype)
                  for side in (size // 4, size))
        return lq, gt


def _cut_or_whole(name: str, part: str, net: Callable[[], nn.Module], reason: str, whole: dict[str, int]
                  ) -> dict[str, Row]:
    """A network that must see the whole batch: exact where it does, refused where it cannot."""
    chosen = {f'net_{part[0]}': net}
    rows = {f'{name}, cut': Row(**chosen, micro=CUT, refused=f'{part}: {reason}'),
            f'{name}, whole': Row(**chosen, micro=whole)}
    if part == 'discriminator':  # one number for all parts leaves the choice to the step
        rows[f'{name}, one number'] = Row(**chosen, micro=2)
    else:
        rows[f'{name}, one number'] = Row(**chosen, micro=2, refused=f'{part}: {reason}')
    return rows


def _norm_with_statistics() -> nn.Module:
    return nn.InstanceNorm2d(8, affine=True, track_running_stats=True)


_COUPLES = 'couples samples .* sees a part of the batch'
_SHARES = 'draws random numbers that all samples of a call share .* sees a part of the batch'
_BUFFERS = 'changes buffers in each pass .* sees a part of the batch'

COUPLING: dict[str, Row] = {
    **_cut_or_whole('functional batch norm in D', 'discriminator',
                    lambda: discriminator(layers.Apply(functional_norm)), _COUPLES, D_WHOLE),
    **_cut_or_whole('functional batch norm in G', 'generator', lambda: generator(layers.Apply(functional_norm)), _COUPLES,
                    G_WHOLE),
    **_cut_or_whole('minibatch standard deviation', 'discriminator',
                    lambda: discriminator(layers.MinibatchStd(5), features=9), _COUPLES, D_WHOLE),
    **_cut_or_whole('BatchNorm in D', 'discriminator', lambda: discriminator(nn.BatchNorm2d(8)),
                    r'couples samples \(BatchNorm2d\) and sees a part', D_WHOLE),
    **_cut_or_whole('BatchNorm in G', 'generator', lambda: generator(nn.BatchNorm2d(8)),
                    r'couples samples \(BatchNorm2d\) and sees a part', G_WHOLE),
    **_cut_or_whole('coupling and noise in D', 'discriminator',
                    lambda: discriminator(nn.Dropout(0.3), layers.Apply(functional_norm)), _COUPLES, D_WHOLE),
    **_cut_or_whole('coupling and noise in G', 'generator',
                    lambda: generator(layers.Apply(functional_norm), nn.Dropout(0.3)), _COUPLES, G_WHOLE),
    **_cut_or_whole('gate that couples later in D', 'discriminator', lambda: discriminator(layers.ZeroGate()), _COUPLES,
                    D_WHOLE),
    **_cut_or_whole('gate that couples later in G', 'generator', lambda: generator(layers.ZeroGate()), _COUPLES, G_WHOLE),
    **_cut_or_whole('D with one scalar', 'discriminator', OneScalar, _COUPLES, D_WHOLE),
    'BatchNorm in D, batches grow, one number': Row(net_d=lambda: discriminator(nn.BatchNorm2d(8)), batches=(4, 7)),
    'BatchNorm in D, batches grow, fixed': Row(
        net_d=lambda: discriminator(nn.BatchNorm2d(8)), batches=(4, 7), micro={**CUT, 'discriminator': 4},
        refused=r'discriminator: couples samples \(BatchNorm2d\) and sees a part of the batch'),
    'gate that couples later in D, five updates': Row(net_d=lambda: discriminator(layers.ZeroGate()), batches=(5,) * 5),
}

STATE: dict[str, Row] = {
    **_cut_or_whole('InstanceNorm with running statistics in G', 'generator', lambda: generator(_norm_with_statistics()),
                    _BUFFERS, G_WHOLE),
    **_cut_or_whole('InstanceNorm with running statistics in D', 'discriminator',
                    lambda: discriminator(_norm_with_statistics()), _BUFFERS, D_WHOLE),
    **_cut_or_whole('custom buffer in G', 'generator', lambda: generator(layers.RunningMean(used=False)), _BUFFERS, G_WHOLE),
    **_cut_or_whole('custom buffer in D', 'discriminator', lambda: discriminator(layers.RunningMean(used=False)), _BUFFERS,
                    D_WHOLE),
    'buffer that is used': Row(net_d=lambda: discriminator(layers.RunningMean(used=True)), micro=ALL_WHOLE,
                               refused='discriminator: its result changes from call to call'),
    'untryable D, whole batch': Row(net_d=lambda: discriminator(Uncopyable()), micro=ALL_WHOLE,
                                    refused='discriminator: could not be tried on a toy batch: it cannot be copied'),
    'untryable G, whole batch': Row(net_g=lambda: generator(Uncopyable()), micro=ALL_WHOLE,
                                    refused='generator: could not be tried on a toy batch: it cannot be copied'),
    'spectral norm over dropout': Row(
        net_d=lambda: discriminator(spectral_norm(Reading(lambda x, training: F.dropout(x, 0.5, training)))),
        micro=ALL_WHOLE),
    **_cut_or_whole('spectral norm over functional batch norm', 'discriminator',
                    lambda: discriminator(spectral_norm(Reading(
                        lambda x, training: F.batch_norm(x, torch.zeros(8).to(x), torch.ones(8).to(x), training=training)))),
                    _COUPLES, D_WHOLE),
    'spectral norm, new': Row(net_d=lambda: discriminator(parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, 1, 1)))),
    'spectral norm, old': Row(net_d=lambda: discriminator(spectral_norm(nn.Conv2d(8, 8, 3, 1, 1)))),
    **_cut_or_whole("layer drop by Python's random in G", 'generator', lambda: generator(layers.LayerDrop(random.random)),
                    _SHARES, G_WHOLE),
    **_cut_or_whole("layer drop by numpy's random in G", 'generator',
                    lambda: generator(layers.LayerDrop(lambda: numpy.random.rand())), _SHARES, G_WHOLE),
    **_cut_or_whole("layer drop by Python's random in D", 'discriminator',
                    lambda: discriminator(layers.LayerDrop(random.random)), _SHARES, D_WHOLE),
    **_cut_or_whole("layer drop by numpy's random in D", 'discriminator',
                    lambda: discriminator(layers.LayerDrop(lambda: numpy.random.rand())), _SHARES, D_WHOLE),
    'branches by content': Row(net_g=Branches),
    'branches by content, one way': Row(net_g=lambda: Branches(-1.0)),
}


def _no_mean(function: Callable[[Tensor, Tensor], Tensor]) -> Row:
    return Row(pixel=lambda: Loss(function), refused='l_g_pix: not a mean over samples')


LOSSES: dict[str, Row] = {
    'sum': Row(pixel=lambda: L1Loss(reduction='sum'), refused='l_g_pix: not a mean over samples'),
    'hardest sample': _no_mean(lambda output, gt: _each(output, gt).max()),
    'hardest half': _no_mean(lambda output, gt: _each(output, gt).topk((len(output) + 1) // 2).values.mean()),
    'outside of [0, 1]': _no_mean(lambda output, gt: F.relu(output - 1).sum() + F.relu(-output).sum()),
    'positive pixels': _no_mean(positive_pixels),
    'own running mean': Row(pixel=OwnMean, refused='changes from call to call'),
    'weight of the call': Row(pixel=WeightOfCall, refused='changes from call to call'),
    'perceptual, sum': Row(perceptual=lambda: _Features(), refused='l_g_percep: not a mean over samples'),
    'a value for each pixel': Row(pixel=lambda: L1Loss(reduction='none'), host_pixel=L1Loss),
}


class _Features(ForeignPerceptual):
    def forward(self, output: Tensor, gt: Tensor) -> tuple[Tensor, None]:
        return F.l1_loss(self.features(output), self.features(gt), reduction='sum'), None


def _hook(net_g: nn.Module, net_d: nn.Module) -> None:
    next(net_g.parameters()).register_hook(lambda gradient: gradient / gradient.norm())


def _late_hook(net_g: nn.Module, net_d: nn.Module) -> None:
    next(net_d.parameters()).register_post_accumulate_grad_hook(lambda parameter: None)


class _Shared(nn.Module):
    """A discriminator whose first layer may be taken from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 1, 1), plain_discriminator()
        self.back = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.back(self.first(x)))


def _share(net_g: Any, net_d: Any) -> None:
    net_d.first.weight = net_g[0].weight


WIRING: dict[str, Row] = {
    'optimizer with a state of its own': Row(optimizer=Averaging, batches=(5, 5, 5), tolerance=1e-9),
    'gradient hook': Row(wire=_hook, refused='generator: .* has a gradient hook'),
    'hook after the gradient': Row(wire=_late_hook, refused='discriminator: .* has a gradient hook'),
    'parameter of both networks': Row(net_d=_Shared, wire=_share, refused='discriminator: .* belongs to the generator, too'),
}


def _swinir(channels: int = 3, window: int = 8, img_size: int = 8) -> nn.Module:
    return SwinIR(upscale=4, in_chans=channels, img_size=img_size, window_size=window, depths=[1], embed_dim=8,
                  num_heads=[2], mlp_ratio=1, upsampler='pixelshuffledirect')


RIGHT: dict[str, Row] = {
    'SwinIR': Row(net_g=_swinir, size=32),
    'SwinIR, window of 16 px': Row(net_g=lambda: _swinir(window=16, img_size=16), size=64),
    'SwinIR, one channel': Row(net_g=lambda: _swinir(1), net_d=lambda: discriminator(channels=1), size=32, channels=1),
    'ECBSR': Row(net_g=lambda: ECBSR(3, 3, 1, 8, False, 'prelu', 4)),
    'one channel': Row(net_g=lambda: generator(channels=1), net_d=lambda: discriminator(channels=1), channels=1),
    'InstanceNorm in G': Row(net_g=lambda: generator(nn.InstanceNorm2d(8, affine=True))),
    'InstanceNorm in D': Row(net_d=lambda: discriminator(nn.InstanceNorm2d(8, affine=True))),
    'GroupNorm in G': Row(net_g=lambda: generator(nn.GroupNorm(2, 8))),
    'GroupNorm in D': Row(net_d=lambda: discriminator(nn.GroupNorm(2, 8))),
    'old weight_norm in G': Row(net_g=lambda: generator(weight_norm(nn.Conv2d(8, 8, 3, 1, 1)))),
    'old weight_norm in D': Row(net_d=lambda: discriminator(weight_norm(nn.Conv2d(8, 8, 3, 1, 1)))),
    'float32 constants': Row(net_g=lambda: generator(Constants()), net_d=lambda: discriminator(Constants())),
    'casts to float32': Row(net_g=lambda: generator(CastsToFloat32()), dtype=torch.float32, tolerance=1e-5),
    'Fourier transform': Row(net_g=lambda: generator(Fourier())),
    'Conv3d': Row(net_g=lambda: generator(Volume()), net_d=lambda: discriminator(Volume())),
    'loss that needs 64 px': Row(pixel=MultiScale, size=64),
    'GAN only': Row(pixel=None),
    'clipping by value': Row(clip={'type': 'value', 'clip_value': 3e-3}, batches=(5, 5)),
    'perceptual loss of a stranger': Row(perceptual=ForeignPerceptual),
}


def _at_border(row: Row) -> Row:
    return replace(row, batches=(4, 4), later_size=32, micro={'generator': 4, 'perceptual': 2, 'discriminator': 4})


# Crops grow, and with them shrinks the number of samples that are worked on at a time; these parts must not follow.
BORDER = {name: _at_border(COUPLING[f'{name}, whole']) for name in (
    'functional batch norm in D', 'functional batch norm in G', 'minibatch standard deviation', 'BatchNorm in D',
    'BatchNorm in G', 'gate that couples later in D', 'gate that couples later in G', 'D with one scalar')}
BORDER['InstanceNorm with running statistics in G'] = _at_border(STATE['InstanceNorm with running statistics in G, whole'])

# Memory runs out once in a part that sees the whole batch and must not be cut.
SHORT_OF_MEMORY = {name: replace({**COUPLING, **STATE}[f'{name}, whole'], micro=ALL_WHOLE) for name in (
    'functional batch norm in D', 'functional batch norm in G', 'minibatch standard deviation', 'BatchNorm in D',
    'gate that couples later in D', 'coupling and noise in D', 'coupling and noise in G',
    'InstanceNorm with running statistics in D', 'InstanceNorm with running statistics in G', 'custom buffer in D')}

ROWS = {**COUPLING, **STATE, **LOSSES, **WIRING, **RIGHT}


def says(row: Row, text: str) -> bool:
    """Whether a refusal names the part and the reason."""
    return row.refused is not None and re.search(row.refused, text) is not None
