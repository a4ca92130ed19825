"""Do the files of weights and states that the options name hold what the training will load?"""
from __future__ import annotations

import os
from collections.abc import Iterator

from torch import Tensor

from sr_bigbatch.files.formats import networks_in, refuse_not_finite
from sr_bigbatch.files.names import path_of
from sr_bigbatch.files.storage import load_tensors
from sr_bigbatch.hosts.basicsr.build import OUR_MODELS
from sr_bigbatch.hosts.basicsr.construct import network_to_inspect
from sr_bigbatch.hosts.basicsr.settings import Options
from sr_bigbatch.hosts.basicsr.weights import key_of, misfit, other_key
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator


def pretrained_findings(opt: Options) -> Iterator[str]:
    """A finding for each file that is missing or torn, and for weights that the network would refuse."""
    for key in ('pretrain_network_g', 'pretrain_network_d', 'resume_state'):
        value = opt['path'].get(key)
        if value is None:
            continue
        if not os.path.isfile(path_of(value)):
            yield f'path.{key}: there is no file {value}; set it to ~ to start without'
            continue
        try:
            networks = networks_in(load_tensors(path_of(value)))
            for name, network in networks.items():
                refuse_not_finite(network, str(name or value))
            if key != 'resume_state' and opt.get(f'network_{key[-1]}'):
                yield from _unfit(opt, key[-1], str(value), networks)
        except ValueError as error:  # BadFile, or weights that are not finite
            yield f'path.{key}: {error}'


def pretrained_notes(opt: Options) -> Iterator[str]:
    """A sentence for each network whose weights are taken from another key of the file than was named.

    Args:
        opt: without findings.
    """
    for label in 'gd':
        path = opt['path'].get(f'pretrain_network_{label}')
        if path is None or not opt.get(f'network_{label}'):
            continue
        wanted = _wanted(opt, label)
        key = key_of(path, networks_in(load_tensors(path_of(path))), [wanted])
        if key != wanted:
            yield f'path.pretrain_network_{label}: {other_key(path, wanted, key)}'


def _wanted(opt: Options, label: str) -> str | None:
    key: str | None = opt['path'].get(f'param_key_{label}', 'params')
    return key


def _unfit(opt: Options, label: str, path: str, networks: dict[str | None, dict[str, Tensor]]) -> Iterator[str]:
    """A finding for weights that the network would refuse, and for those that BasicSR's own models would not find.

    Raises:
        BadFile: if the file does not say which weights are meant.
    """
    where, wanted = f'path.pretrain_network_{label}', _wanted(opt, label)
    key = key_of(path, networks, [wanted])
    found = {wanted, 'params_ema'} if label == 'g' and opt['train'].get('ema_decay') else {wanted}
    if opt['model_type'] not in OUR_MODELS and 'params' not in networks and not found <= set(networks):
        yield (f'{where}: {opt["model_type"]} of BasicSR looks for {" and ".join(map(str, found))}, and {path} has '
               f'{", ".join(map(str, networks))}: set path.param_key_{label}, convert it (tools/convert.py --to basicsr), '
               f'or train with {" or ".join(OUR_MODELS)}')
    try:
        net = network_to_inspect(opt[f'network_{label}'])
    except Exception:
        return  # build_findings says why
    if isinstance(net, GrowableVGGDiscriminator):
        return  # it grows to the size of the weights, or they to its own
    strict = bool(opt['path'].get(f'strict_load_{label}', True))
    because = misfit(net, networks[key], strict)
    if because is not None:
        otherwise = f', or take what fits (path.strict_load_{label}: false)' if strict else ''
        yield f'{where}: {path} does not fit network_{label}: {because}. Describe the network of the file{otherwise}'
