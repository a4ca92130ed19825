"""Builds the RRDBNet that a file of weights belongs to."""
from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from sr_bigbatch.files.formats import converted
from sr_bigbatch.files.storage import BadFile, load_tensors

from .rrdb import CheckpointedRRDBNet

_SCALES = {1: 4, 4: 2, 16: 1}  # pixel unshuffle makes so many channels of one
_OLD_NAMES = (('RRDB_trunk.', 'body.'), ('RDB', 'rdb'), ('trunk_conv', 'conv_body'), ('upconv', 'conv_up'),
              ('HRconv', 'conv_hr'))


def weights_of(path: Path) -> dict[str, Tensor]:
    """The generator's weights, averaged ones if there are any, of BasicSR, Real-ESRGAN, ESRGAN, mmagic or safetensors.

    Raises:
        BadFile: if it holds none.
    """
    content = load_tensors(path)
    try:
        networks = converted(content, 'basicsr')
    except ValueError as error:
        raise BadFile(f'{path}: {error}') from None
    weights: dict[str, Tensor] = networks.get('params_ema') or networks['params']
    return {_modern(name.removeprefix('module.')): value for name, value in weights.items()}


def _modern(name: str) -> str:
    for old, new in _OLD_NAMES:
        name = name.replace(old, new)
    return name


def restore(path: Path) -> CheckpointedRRDBNet:
    """The network of a file of weights, ready to be used.

    Raises:
        BadFile: if the file holds no RRDBNet.
    """
    weights = weights_of(path)
    try:
        blocks = 1 + max(int(match[1]) for name in weights if (match := re.match(r'body\.(\d+)\.', name)))
        features, channels = weights['conv_first.weight'].shape[:2]
        outputs, grown = weights['conv_last.weight'].shape[0], weights['body.0.rdb1.conv1.weight'].shape[0]
        scale = _SCALES[channels // outputs]
        net = CheckpointedRRDBNet(outputs, outputs, scale, features, blocks, grown)
        net.load_state_dict(weights, strict=True)
    except (KeyError, ValueError, RuntimeError) as error:
        raise BadFile(f'{path} holds no RRDBNet ({str(error).splitlines()[0]})') from None
    return net.eval()
