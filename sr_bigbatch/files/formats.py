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
_ALONE = 'only_averaged'  # in `meta`: the file that was converted had the averaged generator alone


def format_of(checkpoint: dict[str, Any]) -> str:
    """Which of :data:`FORMATS` a checkpoint has; weights and nothing else count as BasicSR's ``params``.

    Raises:
        ValueError: for another.
    """
    if any(is_weights(given) for given in (checkpoint, checkpoint.get('params'), checkpoint.get('params_ema'))):
        return 'basicsr'
    names = checkpoint.get('state_dict')
    for name, prefixes in _PREFIXES.items():
        if isinstance(names, dict) and any(str(key).startswith(tuple(prefixes.values())) for key in names):
            return name
    raise ValueError('this is not a checkpoint with a generator: neither params nor params_ema (BasicSR), nor a state_dict '
                     'with generator. (mmagic) or net_g. (AccumulatingESRGAN), averaged or not')


def is_weights(content: Any) -> bool:
    """Whether something is the weights of a network: names with tensors, and nothing else."""
    return isinstance(content, dict) and bool(content) and all(isinstance(value, Tensor) for value in content.values())


def networks_in(checkpoint: dict[str, Any]) -> dict[str | None, dict[str, Tensor]]:
    """The networks of a checkpoint by their keys; None is the key of weights and nothing else.

    The generators of mmagic and mmengine are there as ``params`` and ``params_ema``.
    """
    if is_weights(checkpoint):
        return {None: checkpoint}
    found: dict[str | None, dict[str, Tensor]] = {key: value for key, value in checkpoint.items() if is_weights(value)}
    try:
        kind = format_of(checkpoint)
    except ValueError:
        return found
    if kind in _PREFIXES:
        del found['state_dict']
        found.update(_networks(checkpoint, kind))
    return found


def converted(checkpoint: dict[str, Any], to: str) -> dict[str, Any]:
    """The generator of a checkpoint in another format, averaged and not, with the same tensors.

    Of a file with the averaged generator alone, as those of Real-ESRGAN are, mmagic and mmengine get it as the generator,
    too: one that stayed as it was drawn would be of no use. The way back leaves it out again.

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
    alone = list(networks) == ['params_ema']
    written = {'params': networks['params_ema'], **networks} if alone else networks
    return {'meta': {_ALONE: True} if alone else {},
            'state_dict': {_PREFIXES[to][key] + name: tensor
                           for key, network in written.items() for name, tensor in network.items()}}


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
        given = {'params': checkpoint} if is_weights(checkpoint) else checkpoint
        return {key: given[key] for key in ('params', 'params_ema') if is_weights(given.get(key))}
    found = {key: _bare({name.removeprefix(prefix): tensor for name, tensor in checkpoint['state_dict'].items()
                         if str(name).startswith(prefix)}) for key, prefix in _PREFIXES[kind].items()}
    meta = checkpoint.get('meta')
    if isinstance(meta, dict) and meta.get(_ALONE) and found['params_ema']:
        del found['params']
    return {key: network for key, network in found.items() if network}


def _bare(network: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network without mmengine's wrapper around an averaged one, which counts its steps."""
    if 'steps' not in network:
        return network
    return {name.removeprefix('module.'): tensor for name, tensor in network.items() if name != 'steps'}
