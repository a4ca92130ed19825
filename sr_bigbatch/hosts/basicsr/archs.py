"""Registers our networks with BasicSR."""
from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY

from sr_bigbatch.nets.rrdb import CheckpointedRRDBNet
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator

ARCH_REGISTRY.register(CheckpointedRRDBNet)
ARCH_REGISTRY.register(GrowableVGGDiscriminator)
