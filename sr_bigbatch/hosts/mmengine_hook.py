"""Progressive resolution as an mmengine Hook."""
from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sr_bigbatch.core.growth import Training, parse_stages, stage_at


@HOOKS.register_module()
class ProgressiveResolutionHook(Hook):  # type: ignore[misc]
    """Trains on larger crops from stage to stage, with a discriminator that grows and an effective batch that does not
    shrink.

    At a border the data loader is told the new size. Batches of the old size that are under way are still used; with
    the first batch of the new size the discriminator grows and the micro-batches shrink.

    Args:
        stages: ``[{gt_size: 128, until: 200000}, {gt_size: 256}]``: crop size in pixels and last iteration.

    Raises:
        ValueError: if the stages do not follow one another.
    """

    def __init__(self, stages: list[dict[str, Any]]) -> None:
        self.stages = parse_stages(stages)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Have the first batch of a resumed run cut to its stage."""
        training = self._training(runner)
        training.set_gt_size(stage_at(self.stages, training.current_iter).gt_size)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Announce the crop size of the stage and fit networks and micro-batches to the batch at hand."""
        training = self._training(runner)
        training.set_gt_size(stage_at(self.stages, training.current_iter).gt_size)
        training.fit_to(data_batch['gt'].shape[-1])

    @staticmethod
    def _training(runner: Any) -> Training:
        training = runner if isinstance(runner, Training) else getattr(runner, 'model', None)
        if not isinstance(training, Training):
            raise TypeError(f'ProgressiveResolutionHook needs a model that can grow, got {type(training).__name__}: use '
                            'AccumulatingESRGANModel')
        return training
