"""How a training in mmengine's Runner goes over to larger crops."""
from __future__ import annotations

from typing import Any

import torch
from mmengine.model.wrappers import is_model_wrapper

from sr_bigbatch.hosts.mmengine.types import State
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.nets.vgg_growth import grow, grow_to, regroup, shape_of
from sr_bigbatch.progressive.crop_size import set_crop_size
from sr_bigbatch.progressive.stages import cut
from sr_bigbatch.step.distributed import world_size


class RunnerTraining:
    """What :class:`sr_bigbatch.hosts.mmengine.hook.ProgressiveResolutionHook` needs of a Runner.

    Args:
        runner: its model has a generator and a discriminator, ``net_g`` and ``net_d`` or by their full names, and optimizer
            wrappers of the same names. A model that cuts its batch does so anew in ``replan``.
        first_size: crop size of the first stage, in pixels.

    Raises:
        TypeError: for another model.
    """

    def __init__(self, runner: Any, first_size: int) -> None:
        self.runner, self.first_size = runner, first_size
        model: Any = getattr(runner, 'model', None)
        self.model: Any = model.module if is_model_wrapper(model) else model
        found = [names for names in (('net_g', 'net_d'), ('generator', 'discriminator'))
                 if all(hasattr(self.model, name) for name in names)]
        if not found:
            raise TypeError(f'ProgressiveResolutionHook needs a model that can grow, got {type(self.model).__name__}: use '
                            'AccumulatingESRGANModel (BasicSR) or AccumulatingESRGAN (mmengine)')
        self._name_g, self._name_d = found[0]

    @property
    def _net_d(self) -> Any:
        net_d = getattr(self.model, self._name_d)
        return net_d.module if is_model_wrapper(net_d) else net_d

    @property
    def current_iter(self) -> int:
        """The running iteration, counted from 1."""
        return int(self.runner.iter) + 1

    @property
    def effective_batch(self) -> int:
        """Images of an iteration, in all processes."""
        loader = self.runner.train_dataloader
        return int(loader.batch_size or loader.batch_sampler.batch_size) * world_size()

    @property
    def batches_under_way(self) -> int:
        """How many batches the loader may have begun before they are asked for."""
        loader = self.runner.train_dataloader
        return int(loader.num_workers * (loader.prefetch_factor or 0))

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Of all networks."""
        return [wrapper.optimizer for wrapper in self.runner.optim_wrapper.values()]

    def set_gt_size(self, gt_size: int) -> None:
        """Tell the data set the crop size that is needed next.

        Raises:
            TypeError: if its crops cannot change.
        """
        if not set_crop_size(gt_size) and gt_size != self.first_size:
            raise TypeError('the crop size cannot change: use ProgressivePairedImageDataset or, in a pipeline of mmagic, '
                            'ProgressivePairedRandomCrop')

    def enter_stage(self, gt_size: int, batch: dict[str, Any], growth: str, lr_factor: float) -> None:
        """Let the discriminator grow and the micro-batches shrink; the effective batch stays."""
        if isinstance(self._net_d, GrowableVGGDiscriminator):
            net_g, images = getattr(self.model, self._name_g), self._images(batch)
            for line in grow_to(net_g, self._net_d, self._optimizer_d, self._schedulers, images, gt_size, growth, lr_factor):
                self._growths.append(growth)
                self.runner.logger.info(line)
        if gt_size != self.first_size:
            if hasattr(self.model, 'replan'):
                self.model.replan(self.first_size, gt_size)
            count = len(batch['gt'] if 'gt' in batch else batch['inputs'])
            self.runner.logger.info(f'Crops of {gt_size} px, effective batch {count * world_size()}.')

    def _images(self, batch: dict[str, Any]) -> dict[str, Any]:
        if 'gt' in batch:
            return batch
        prepared = self.model.data_preprocessor(batch, True)
        return {'lq': prepared['inputs'], 'gt': self.model.extract_gt_data(prepared['data_samples'])}

    @property
    def _growths(self) -> list[str]:
        if not hasattr(self.model, 'growths'):
            self.model.growths = []
        growths: list[str] = self.model.growths
        return growths

    def set_fade(self, share: float) -> None:
        """How much a prepended stage of the discriminator counts, 0..1."""
        if getattr(self._net_d, 'prepended', 0):
            self._net_d.set_fade(share)

    def remember(self, checkpoint: State) -> None:
        """Put into a checkpoint how the discriminator has grown."""
        checkpoint['growths'] = list(self._growths)

    def recall(self, checkpoint: State) -> None:
        """Let the discriminator and its optimizer grow to what a checkpoint holds, before it is loaded."""
        net_d, prefix = self._net_d, f'{self._name_d}.'
        if not isinstance(net_d, GrowableVGGDiscriminator):
            return
        names = [name.removeprefix(prefix).removeprefix('module.')
                 for name in checkpoint['state_dict'] if name.startswith(prefix)]
        stages, prepended = shape_of(names)
        for way, missing in (('append', stages - net_d.stages), ('prepend', prepended - net_d.prepended)):
            for _ in range(missing):
                self._optimizer_d.param_groups[0]['params'] += grow(net_d, way)
        self.model.growths = list(checkpoint.get('growths', ()))
        regroup(net_d, self._optimizer_d, self._schedulers, self.model.growths)

    @property
    def _optimizer_d(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.runner.optim_wrapper[self._name_d].optimizer
        return optimizer

    @property
    def _schedulers(self) -> list[Any]:
        schedulers = self.runner.param_schedulers or []
        return [scheduler for each in (schedulers.values() if isinstance(schedulers, dict) else [schedulers])
                for scheduler in each]


def width_of(batch: dict[str, Any]) -> int:
    """Width of the smallest ground truth in a batch, in pixels; a batch of ours or of mmagic."""
    if 'gt' in batch:
        return int(batch['gt'].shape[-1])
    return min(int(sample.gt_img.shape[-1]) for sample in batch['data_samples'])


def cut_batch(batch: dict[str, Any], gt_size: int, count: int | None) -> None:
    """Cut both images of each pair to the same corner of ``gt_size`` pixels, in place, and keep ``count`` of them."""
    if 'gt' in batch:
        batch['lq'], batch['gt'] = cut(batch['lq'], batch['gt'], gt_size, count)
        return
    batch['inputs'], batch['data_samples'] = batch['inputs'][:count], batch['data_samples'][:count]
    for index, sample in enumerate(batch['data_samples']):
        lq, gt = cut(batch['inputs'][index][None], sample.gt_img[None], gt_size)
        batch['inputs'][index] = lq[0]
        sample.set_data({'gt_img': gt[0]})
