"""How a training in mmengine's Runner goes over to larger crops."""
from __future__ import annotations

from typing import Any

import torch
from mmengine.model.wrappers import is_model_wrapper

from sr_bigbatch.core.distributed import world_size
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.nets.vgg_growth import grow, grow_to, regroup, shape_of


class RunnerTraining:
    """What :class:`sr_bigbatch.hosts.mmengine_hook.ProgressiveResolutionHook` needs of a Runner.

    Args:
        runner: its model has the networks ``net_g`` and ``net_d`` and cuts its batch anew in ``replan``.

    Raises:
        TypeError: for another model.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        model: Any = getattr(runner, 'model', None)
        self.model: Any = model.module if is_model_wrapper(model) else model
        if not all(hasattr(self.model, name) for name in ('net_g', 'net_d', 'replan', 'growths')):
            raise TypeError(f'ProgressiveResolutionHook needs a model that can grow, got {type(self.model).__name__}: use '
                            'AccumulatingESRGANModel (BasicSR) or AccumulatingESRGAN (mmengine)')

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
        """Tell the data set the crop size that is needed next."""
        self.runner.train_dataloader.dataset.set_gt_size(gt_size)

    def enter_stage(self, gt_size: int, batch: dict[str, Any], growth: str, lr_factor: float) -> None:
        """Let the discriminator grow and the micro-batches shrink; the effective batch stays."""
        model, first = self.model, int(self.runner.train_dataloader.dataset.first_gt_size)
        if isinstance(model.net_d, GrowableVGGDiscriminator):
            for line in grow_to(model.net_g, model.net_d, self._optimizer_d, self._schedulers, batch, gt_size, growth,
                                lr_factor):
                model.growths.append(growth)
                self.runner.logger.info(line)
        if gt_size != first:
            model.replan(first, gt_size)
            self.runner.logger.info(f'Crops of {gt_size} px, effective batch {self.effective_batch}.')

    def set_fade(self, share: float) -> None:
        """How much a prepended stage of the discriminator counts, 0..1."""
        if getattr(self.model.net_d, 'prepended', 0):
            self.model.net_d.set_fade(share)

    def remember(self, checkpoint: dict[str, Any]) -> None:
        """Put into a checkpoint how the discriminator has grown."""
        checkpoint['growths'] = list(self.model.growths)

    def recall(self, checkpoint: dict[str, Any]) -> None:
        """Let the discriminator and its optimizer grow to what a checkpoint holds, before it is loaded."""
        net_d = self.model.net_d
        if not isinstance(net_d, GrowableVGGDiscriminator):
            return
        prefix = 'net_d.'
        names = [name.removeprefix(prefix) for name in checkpoint['state_dict'] if name.startswith(prefix)]
        stages, prepended = shape_of(names)
        for way, missing in (('append', stages - net_d.stages), ('prepend', prepended - net_d.prepended)):
            for _ in range(missing):
                self._optimizer_d.param_groups[0]['params'] += grow(net_d, way)
        self.model.growths = list(checkpoint.get('growths', ()))
        regroup(net_d, self._optimizer_d, self._schedulers, self.model.growths)

    @property
    def _optimizer_d(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.runner.optim_wrapper['net_d'].optimizer
        return optimizer

    @property
    def _schedulers(self) -> list[Any]:
        schedulers = self.runner.param_schedulers or []
        return [scheduler for each in (schedulers.values() if isinstance(schedulers, dict) else [schedulers])
                for scheduler in each]
