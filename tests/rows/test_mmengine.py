"""Every row in mmengine's model."""
import copy

import pytest
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

import sr_bigbatch.hosts.mmengine.hook
import sr_bigbatch.hosts.mmengine.model  # noqa: F401  (registers the model)
from sr_bigbatch.progressive.crop_size import CropSize
from tests.rows.cases import BORDER, ROWS, SHORT_OF_MEMORY, Averaging, Momentum, Row
from tests.rows.reference import Undivided, compare, judge, short_of_memory

pytestmark = pytest.mark.filterwarnings('ignore')  # mmengine's own


@MODELS.register_module()
def RowNetwork(row, part):
    return row.network(part)


@MODELS.register_module()
def RowLoss(row, part):
    return row.loss(part)


@MODELS.register_module()
def RowGANLoss(row):
    return row.gan_loss()


for _optimizer in (Averaging, Momentum):
    OPTIMIZERS.register_module(module=_optimizer)


def build(row: Row):
    """The model and its wrappers."""
    losses = {f'{part}_loss': {'type': 'RowLoss', 'row': row, 'part': part}
              for part in ('pixel', 'perceptual') if getattr(row, part) is not None}
    networks = {f'net_{part}': {'type': 'RowNetwork', 'row': row, 'part': part} for part in 'gd'}
    model = MODELS.build({'type': 'AccumulatingESRGAN', **networks, **losses, 'gan_loss': {'type': 'RowGANLoss', 'row': row},
                          'micro_batch_size': copy.deepcopy(row.micro)}).train()
    if row.wire:
        row.wire(model.net_g, model.net_d)
    settings = {name: {'optimizer': {'type': row.optimizer.__name__}, 'dtype': 'float32', 'clip_grad': row.clip}
                for name in ('net_g', 'net_d')}
    return model, OPTIM_WRAPPER_CONSTRUCTORS.build({'type': 'OptimWrapperPerNetwork', 'optim_wrapper_cfg': settings})(model)


@pytest.mark.parametrize('name', ROWS)
def test_row(name):
    model, wrappers = build(ROWS[name])
    print(judge(ROWS[name], lambda lq, gt: model.train_step({'lq': lq, 'gt': gt}, wrappers),
                                     {'g': model.net_g, 'd': model.net_d}))


class Pairs(Dataset):
    """The samples of a row's batches, one after another, with crops of the size that the hook asks for."""

    def __init__(self, row):
        self.crop_size = CropSize(row.size)
        batches = [row.batch(number) for number in range(len(row.batches))]
        self.samples = [{'lq': lq, 'gt': gt} for batch in batches for lq, gt in zip(*batch, strict=True)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.mark.parametrize('name', BORDER)
def test_a_part_that_couples_is_not_cut_where_crops_grow(name, tmp_path):
    row = BORDER[name]
    model, wrappers = build(row)
    loader = DataLoader(Pairs(row), row.batches[0])
    hook = {'type': 'ProgressiveResolutionHook', 'stages': [{'gt_size': 16, 'until': 1}, {'gt_size': 32}]}
    runner = Runner(model, str(tmp_path), loader, optim_wrapper=wrappers, train_cfg={'by_epoch': False, 'max_iters': 2},
                    custom_hooks=[hook], default_hooks={'checkpoint': None}, experiment_name=f'border {name}',
                    log_level='ERROR')
    runner.train()
    reference = Undivided(row)
    for number in range(2):
        reference.update(*row.batch(number))
    assert loader.dataset.crop_size.pixels == 32 and model.step.plan.micro.perceptual == 1
    print(compare(row, reference, {'g': model.net_g, 'd': model.net_d}))


@pytest.mark.parametrize('backward', [False, True], ids=['forward', 'backward'])
@pytest.mark.parametrize('name', SHORT_OF_MEMORY)
def test_a_part_that_couples_is_not_cut_when_memory_runs_out(name, backward):
    row = SHORT_OF_MEMORY[name]
    model, wrappers = build(row)
    model.step = model._step(wrappers)

    def make(lq, gt):
        short_of_memory(name, model.step, lq, gt, lambda: model.train_step({'lq': lq, 'gt': gt}, wrappers),
                        backward=backward)

    print(judge(row, make, {'g': model.net_g, 'd': model.net_d}))
