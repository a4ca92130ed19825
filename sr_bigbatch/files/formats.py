"""Weights between BasicSR's files and those of mmagic and mmengine.

BasicSR keeps a network to a file, under ``params`` and, averaged, ``params_ema``. mmagic keeps a whole model in
``state_dict``, with the attribute of each network as prefix. The names inside an RRDBNet are the same.
"""
from __future__ import annotations

from typing import Any

import torch
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
        ValueError: for an unknown format, or weights that are not finite.
    """
    networks = _networks(checkpoint, format_of(checkpoint))
    for key, network in networks.items():
        refuse_not_finite(network, key)
    if to == 'basicsr':
        return networks
    if to not in _PREFIXES:
        raise ValueError(f'to must be one of {", ".join(FORMATS)}, got {to!r}')
    return {'meta': {}, 'state_dict': {_PREFIXES[to][key] + name: tensor
                                       for key, network in networks.items() for name, tensor in network.items()}}


def refuse_not_finite(network: object, name: str) -> None:
    """Refuse weights with which a network makes black images, or none.

    Args:
        network: by name, the weights; what is of another form is left to those who load it.
        name: of the network, for the message.

    Raises:
        ValueError: if a weight is not finite, or claims more elements than the file holds.
    """
    for label, tensor in network.items() if isinstance(network, dict) else ():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # to look at it would fill the memory
            raise ValueError(f'{label} in {name} claims {tensor.numel()} elements, and the file holds fewer')
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f'{label} in {name} is not finite: the training that wrote it had lost its weights')


def _networks(checkpoint: dict[str, Any], kind: str) -> dict[str, dict[str, Tensor]]:
    if kind == 'basicsr':
        return {key: checkpoint[key] for key in ('params', 'params_ema') if key in checkpoint}
    found = {key: {name.removeprefix(prefix): tensor for name, tensor in checkpoint['state_dict'].items()
                   if name.startswith(prefix)} for key, prefix in _PREFIXES[kind].items()}
    return {key: network for key, network in found.items() if network}
