"""BasicSR's models outside a training: built from an option file, and fed by hand."""
from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from basicsr.archs.vgg_arch import VGG_PRETRAIN_PATH
from basicsr.models import build_model

from sr_bigbatch.hosts.basicsr.dataset import dataset_of
from sr_bigbatch.hosts.basicsr.options.check import complete
from sr_bigbatch.hosts.basicsr.training.train import start_processes


def model_of(opt: dict[str, Any], root: Path, seed: int = 0, build: Callable[[dict[str, Any]], Any] = build_model) -> Any:
    """The model of checked options, which stay as they are; nothing is written to ``root``.

    Args:
        opt: options of BasicSR or of ours.
        root: of the experiment's folders.
        seed: of the weights.
        build: a model from completed options; BasicSR finds it by ``model_type``.
    """
    opt = copy.deepcopy(opt)
    complete(opt, root, auto_resume=False, debug=False)
    start_processes(opt, 'none')
    torch.manual_seed(seed)
    return build(opt)


def training_batches(opt: dict[str, Any], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Random batches of the training set, without end; ``opt`` is the ``opt`` of a model."""
    dataset, count = dataset_of(opt['datasets']['train']), opt['datasets']['train']['batch_size_per_gpu']
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(dataset), (count,), generator=generator).tolist()
        yield torch.utils.data.default_collate([dataset[index] for index in chosen])


@contextmanager
def random_vgg() -> Iterator[None]:
    """Work in a folder where BasicSR finds random weights in the place of VGG19's: for timing only."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / VGG_PRETRAIN_PATH
        target.parent.mkdir(parents=True)
        torch.save({name: value if name.startswith('features') else torch.zeros(1).expand(value.shape)
                    for name, value in torchvision.models.vgg19().state_dict().items()}, target)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
