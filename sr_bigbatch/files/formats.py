"""Weights between BasicSR's files and those of mmagic and mmengine.

BasicSR keeps a network to a file, under ``params`` and, averaged, ``params_ema``. mmagic keeps a whole model in
``state_dict``, with the attribute of each network as prefix. The names inside an RRDBNet are the same.
"""
from __future__ import annotations

from typing import Any

from torch import Tensor

_PREFIXES = {'mmagic': {'params': 'generator.', 'params_ema': 'generator_ema.'},
             'mmengine': {'params': 'net_g.', 'params_ema': 'net_g_ema.'}}
FORMATS = ('basicsr', *_PREFIXES)


def format_of(checkpoint: dict[str, Any]) -> str:
    """Which of :data:`FORMATS` a checkpoint has.

    Raises:
        ValueError: for another.
    """
    if any(key in checkpoint for key in ('params', 'params_ema')):
        return 'basicsr'
    names = checkpoint.get('state_dict')
    for name, prefixes in _PREFIXES.items():
        if isinstance(names, dict) and any(key.startswith(prefixes['params']) for key in names):
            return name
    raise ValueError('this is not a checkpoint with a generator: neither params nor params_ema (BasicSR), nor a state_dict '
                     'with generator. (mmagic) or net_g. (AccumulatingESRGAN)')


def converted(checkpoint: dict[str, Any], to: str) -> dict[str, Any]:
    """The generator of a checkpoint in another format, averaged and not, with the same tensors.

    Args:
        checkpoint: as loaded.
        to: of :data:`FORMATS`.

    Raises:
        ValueError: for an unknown format.
    """
    networks = _networks(checkpoint, format_of(checkpoint))
    if to == 'basicsr':
        return networks
    if to not in _PREFIXES:
        raise ValueError(f'to must be one of {", ".join(FORMATS)}, got {to!r}')
    return {'meta': {}, 'state_dict': {_PREFIXES[to][key] + name: tensor
                                       for key, network in networks.items() for name, tensor in network.items()}}


def _networks(checkpoint: dict[str, Any], kind: str) -> dict[str, dict[str, Tensor]]:
    if kind == 'basicsr':
        return {key: checkpoint[key] for key in ('params', 'params_ema') if key in checkpoint}
    found = {key: {name.removeprefix(prefix): tensor for name, tensor in checkpoint['state_dict'].items()
                   if name.startswith(prefix)} for key, prefix in _PREFIXES[kind].items()}
    return {key: network for key, network in found.items() if network}
