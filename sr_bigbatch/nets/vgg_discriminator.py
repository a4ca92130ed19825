"""The VGG-style discriminator of SRGAN and ESRGAN for any input size, which can grow with its input (see vgg_growth).

Shapes: images (M, C, S, S) with S the input size, features (M, F, s, s), logits (M, 1).
"""
from __future__ import annotations

import itertools
from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from .batch_norm_conv import batch_norm_conv

SLOPE = 0.2
NORMS = ('none', 'group', 'spectral', 'batch')
SMALLEST, LARGEST = 32, 1024
_FINAL_SIZE = 4
_HIDDEN = 100


def _stages(input_size: int) -> int:
    return (input_size // _FINAL_SIZE).bit_length() - 1


class GrowableVGGDiscriminator(nn.Module):
    """Judges whole images. Each stage is a 3x3 and a strided 4x4 convolution; the last features are 4x4.

    With ``norm: batch`` and 128 or 256 the state-dict keys are those of BasicSR's ``VGGStyleDiscriminator``, so weights
    trained with it load.

    Args:
        num_in_ch: channels C of the images.
        num_feat: features of the first stage; they double until eight times as many.
        input_size: width and height S of the images, a power of two in 32..1024.
        norm: ``batch``, as in the paper; exact only when the discriminator judges the whole batch at once. ``group``
            (8 groups), ``spectral`` and ``none`` are exact at any micro-batch.
        prepended: how many stages stand before the first one, each for twice the width, as ``prepend`` adds them.

    Attributes:
        stages: number of stages but for prepended ones.

    Raises:
        ValueError: for another size or norm.
    """

    def __init__(self, num_in_ch: int = 3, num_feat: int = 64, input_size: int = 128, norm: str = 'batch',
                 prepended: int = 0) -> None:
        super().__init__()
        check_size(input_size)
        if prepended:
            check_size(input_size >> prepended)
        if norm not in NORMS:
            raise ValueError(f'norm must be one of {", ".join(NORMS)}, got {norm!r}')
        self.input_size, self.norm, self.num_in_ch, self.num_feat = input_size, norm, num_in_ch, num_feat
        self.stages, self.prepended = _stages(input_size >> prepended), 0
        for stage in range(self.stages):
            self.add_stage(stage)
        self.linear1 = nn.Linear(self.width(self.stages - 1) * _FINAL_SIZE**2, _HIDDEN)
        self.linear2 = nn.Linear(_HIDDEN, 1)
        for _ in range(prepended):
            self.add_entry()

    def width(self, stage: int) -> int:
        """Features of a stage, counted from 0."""
        return self.num_feat * min(1 << stage, 8)

    def add_stage(self, stage: int) -> list[nn.Module]:
        """Make a stage and put it behind those there are; returns its layers."""
        before = self.num_in_ch if stage == 0 else self.width(stage - 1)
        added: OrderedDict[str, nn.Module] = OrderedDict()
        for part, (channels, kernel, stride) in enumerate(((before, 3, 1), (self.width(stage), 4, 2))):
            first = stage == 0 and part == 0
            conv: nn.Module = nn.Conv2d(channels, self.width(stage), kernel, stride, 1,
                                        bias=first or self.norm in ('none', 'spectral'))
            added[f'conv{stage}_{part}'] = spectral_norm(conv) if self.norm == 'spectral' else conv
            if not first and self.norm == 'batch':
                added[f'bn{stage}_{part}'] = nn.BatchNorm2d(self.width(stage))
            elif not first and self.norm == 'group':
                added[f'gn{stage}_{part}'] = nn.GroupNorm(8, self.width(stage))
        for name, module in added.items():
            self.add_module(name, module)
        return list(added.values())

    def add_entry(self) -> list[nn.Module]:
        """Make a prepended stage, for images of twice the width, faded in whole; returns its layers."""
        self.prepended += 1
        convs: list[nn.Module] = [nn.Conv2d(self.num_in_ch, self.num_feat, 3, 1, 1),
                                  nn.Conv2d(self.num_feat, self.num_feat, 4, 2, 1)]
        if self.norm == 'spectral':
            convs = [spectral_norm(conv) for conv in convs]
        for part, conv in enumerate(convs):
            self.add_module(f'pre{self.prepended}_{part}', conv)
        self.register_buffer(f'pre{self.prepended}_fade', self.linear1.weight.new_ones(()))
        return convs

    def set_fade(self, share: float) -> None:
        """How much the outermost prepended stage counts, 0..1."""
        self.get_buffer(f'pre{self.prepended}_fade').fill_(share)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (M, 1) of ``images`` (M, C, S, S).

        Raises:
            ValueError: if the images have another size than this network judges.
        """
        if images.shape[-2:] != (self.input_size, self.input_size):
            raise ValueError(f'the discriminator judges {self.input_size}x{self.input_size} images, got '
                             f'{images.shape[-2]}x{images.shape[-1]}: make network_d.input_size and gt_size equal')
        features = self.features(images)
        hidden = F.leaky_relu_(self.linear1(features.flatten(1)), SLOPE)
        logits: Tensor = self.linear2(hidden)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """What the linear layers see of images of any size: (M, F, s, s), s = 4 at ``input_size``."""
        names = [f'{stage}_{part}' for stage in range(self.stages) for part in range(2)]
        if self.norm == 'batch':  # judges whole batches: keep what backward needs and no more
            features: Tensor = checkpoint(self._first, images, use_reentrant=False, preserve_rng_state=False)
            for name, following in itertools.pairwise(names[1:]):
                features = batch_norm_conv(features, getattr(self, f'bn{name}'), getattr(self, f'conv{following}'))
            return F.leaky_relu_(getattr(self, f'bn{names[-1]}')(features), SLOPE)
        features = self._first(images)
        for name, following in itertools.pairwise(names[1:]):
            if self.norm == 'group':  # float32 under CUDA's autocast: keep what goes in, compute the rest again
                features = checkpoint(self._following, features, name, following, use_reentrant=False,
                                      preserve_rng_state=False)
            else:
                features = self._following(features, name, following)
        return self._activated(features, names[-1])

    def _following(self, features: Tensor, name: str, following: str) -> Tensor:
        """The output of convolution ``following`` from that of convolution ``name``."""
        output: Tensor = self.get_submodule(f'conv{following}')(self._activated(features, name))
        return output

    def _activated(self, features: Tensor, name: str) -> Tensor:
        norm = getattr(self, f'gn{name}', None)
        return F.leaky_relu_(features if norm is None else norm(features), SLOPE)

    def _first(self, images: Tensor) -> Tensor:
        first: Tensor = self.get_submodule('conv0_1')(F.leaky_relu_(self._entry(images), SLOPE))
        return first

    def _entry(self, images: Tensor) -> Tensor:
        """The first maps; each prepended stage adds to those of the image at half its size."""
        names = ['conv0_0', *(f'pre{level}_0' for level in range(1, self.prepended + 1))]
        features: Tensor = self.get_submodule(names[-1])(images)
        for level in range(self.prepended, 0, -1):
            images = F.avg_pool2d(images, 2)
            new = self.get_submodule(f'pre{level}_1')(F.leaky_relu_(features, SLOPE))
            features = self.get_submodule(names[level - 1])(images) + self.get_buffer(f'pre{level}_fade') * new
        return features


def check_size(input_size: int) -> None:
    """Raise ValueError unless a discriminator can judge images of this width."""
    power = isinstance(input_size, int) and input_size > 0 and input_size & (input_size - 1) == 0
    if not power or not SMALLEST <= input_size <= LARGEST:
        raise ValueError(f'input_size must be a power of two in {SMALLEST}..{LARGEST}, got {input_size!r}')
