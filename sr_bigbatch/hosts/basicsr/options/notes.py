"""What a user should know of a training that can start: told before it does."""
from __future__ import annotations

from collections.abc import Iterator

import torch

from sr_bigbatch.hosts.basicsr.made_pairs import is_made
from sr_bigbatch.hosts.basicsr.options.pretrained import pretrained_notes
from sr_bigbatch.hosts.basicsr.settings import Options


def notes(opt: Options) -> list[str]:
    """A sentence for each thing that is done in another way than the options may seem to say.

    Args:
        opt: checked options, before they are completed.
    """
    return [*_gpus(opt), *_made(opt), *pretrained_notes(opt)]


def _gpus(opt: Options) -> Iterator[str]:
    if torch.backends.mps.is_available() and opt['num_gpu'] != 0:
        yield 'the GPU of this Mac (mps) is not used: BasicSR trains on GPUs with CUDA or on the CPU'
        return
    asked = 0 if opt['num_gpu'] == 'auto' else int(opt['num_gpu'])
    if asked and not torch.cuda.is_available():
        because = 'is one without CUDA' if torch.version.cuda is None else 'finds no GPU with CUDA'
        yield f'num_gpu is {asked}, but the installed torch {because}: the training runs on the CPU, which is slow'
    elif asked > 1:
        yield (f'num_gpu is {asked}: start one process for each GPU (torchrun --nproc_per_node={asked} ... --launcher '
               'pytorch); a single process is refused')


def _made(opt: Options) -> Iterator[str]:
    for phase, dataset in opt['datasets'].items():
        if is_made(dataset):
            yield (f'datasets.{phase}.dataroot_lq is not given: low-resolution images are made while it runs, by bicubic '
                   'interpolation as tools/prepare_data.py does, which makes them once and is faster')
