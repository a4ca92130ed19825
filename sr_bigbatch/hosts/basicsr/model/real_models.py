"""Real-ESRGAN and Real-ESRNet: degradations made during the training, sharpened targets."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

from sr_bigbatch.hosts.basicsr.model.accumulating import Accumulating
from sr_bigbatch.hosts.basicsr.model.host import TrainingState
from sr_bigbatch.hosts.basicsr.model.models import AccumulatingESRGANModel, AccumulatingSRModel
from sr_bigbatch.hosts.basicsr.settings import Options
from sr_bigbatch.hosts.basicsr.synthesis.batches import SynthesisedBatches
from sr_bigbatch.hosts.basicsr.synthesis.degradation import Photographs
from sr_bigbatch.hosts.basicsr.synthesis.settings import SynthesisSettings
from sr_bigbatch.hosts.basicsr.synthesis.sharpen import Sharpen
from sr_bigbatch.options import OptionError
from sr_bigbatch.step.plan import StepPlan

if TYPE_CHECKING:
    from sr_bigbatch.step.adversarial_step import AdversarialStep


class Synthesising(Accumulating):
    """To be put before one of our models: its batches are made of photographs, unless the options say that they are pairs.

    Attributes:
        iteration_made: of the last batch that was made; a resumed run goes on from it.
    """

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.iteration_made = 0
        settings = SynthesisSettings.from_options(self.opt) if self.is_train else None
        self.synthesised = None if settings is None else SynthesisedBatches(settings, self.device)

    def feed_data(self, data: Any) -> None:
        """Take photographs and their blur kernels and make the batch of them; pairs are taken as they are.

        Raises:
            OptionError: for photographs without blur kernels, or where the options say that there are pairs.
        """
        if 'lq' in data:
            super().feed_data(data)
            return
        if self.synthesised is None or 'kernel1' not in data:
            raise OptionError(['datasets.train gives neither pairs nor photographs with blur kernels: use '
                               'RealESRGANDataset, or high_order_degradation: false and RealESRGANPairedDataset'])
        self.iteration_made += 1
        photographs = Photographs(data['gt'], data['kernel1'], data['kernel2'], data['sinc_kernel'])
        self.lq, self.gt = self.synthesised.make(photographs, self.iteration_made)
        self.files = []  # the pool has mixed the images of many batches

    def state_of_data(self) -> Mapping[str, Any] | None:
        """The pool of pairs."""
        return None if self.synthesised is None else self.synthesised.state_dict()

    def resume_training(self, resume_state: TrainingState) -> None:
        """Restore the state, with the pool as it was."""
        super().resume_training(resume_state)
        self.iteration_made = resume_state['iter']
        if self.synthesised is not None:
            self.synthesised.load_state_dict(resume_state.get('sr_bigbatch', {}).get('data'))


@MODEL_REGISTRY.register()
class AccumulatingRealESRNetModel(Synthesising, AccumulatingSRModel):
    """BasicSR's ``RealESRNetModel`` at an effective batch of any size, with the update of the undivided batch.

    Args:
        opt: the options of ``RealESRNetModel``, plus ``degradation_group`` and those of ``AccumulatingSRModel``.
    """


@MODEL_REGISTRY.register()
class AccumulatingRealESRGANModel(Synthesising, AccumulatingESRGANModel):
    """BasicSR's ``RealESRGANModel`` at an effective batch of any size, with the update of the undivided batch.

    Args:
        opt: the options of ``RealESRGANModel``, plus ``degradation_group`` and those of ``AccumulatingESRGANModel``.
    """

    def build_step(self, plan: StepPlan) -> AdversarialStep:
        """The step of generator and discriminator; each loss compares with the ground truth or a sharpened one."""
        sharpened = self.settings.sharpened
        self.sharpen = Sharpen().to(self.device)
        self.losses.target, self.losses.of_target = self.sharpen, sharpened - {'gan'}
        self.real_images = self.sharpen if 'gan' in sharpened else None
        return super().build_step(plan)

    @property
    def gt_usm(self) -> Tensor:
        """The sharpened ground truth of the whole batch, for BasicSR's own update."""
        sharp: Tensor = self.sharpen(self.gt)
        return sharp
