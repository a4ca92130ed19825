"""Every row in BasicSR's model, from an option dict."""
import copy

import pytest
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

from sr_bigbatch.hosts.basicsr.model.models import AccumulatingESRGANModel
from sr_bigbatch.progressive.crop_size import CropSize
from tests.rows.cases import BORDER, COUPLING, ROWS, SHORT_OF_MEMORY, WIRING, Row
from tests.rows.reference import Undivided, judge, short_of_memory

pytestmark = pytest.mark.filterwarnings('ignore:torch.meshgrid')  # which SwinIR calls


@ARCH_REGISTRY.register()
def RowNetwork(row, part, **channels):
    return row.network(part)


@LOSS_REGISTRY.register()
def RowLoss(row, part):
    return row.loss(part)


@LOSS_REGISTRY.register()
def RowGANLoss(row):
    return row.gan_loss()


@MODEL_REGISTRY.register()
class RowModel(AccumulatingESRGANModel):
    """Takes the row's optimizer, which no option names, and connects the networks as the row does."""

    def setup_optimizers(self):
        if self.opt['row'].wire:
            self.opt['row'].wire(self.net_g, self.net_d)
        super().setup_optimizers()

    def get_optimizer(self, optim_type, params, lr, **kwargs):
        return self.opt['row'].optimizer(params, lr)


def options_of(row: Row) -> dict:
    losses = {f'{part}_opt': {'type': 'RowLoss', 'row': row, 'part': part}
              for part in ('pixel', 'perceptual') if getattr(row, part) is not None}
    optimizer = {'type': row.optimizer.__name__, 'lr': 1e-2}
    networks = {f'network_{part}': {'type': 'RowNetwork', 'row': row, 'part': part, 'in_chans': row.channels}
                for part in 'gd'}
    return {'row': row, 'name': 'row', 'model_type': 'RowModel', 'scale': 4, 'num_gpu': 0, 'dist': False, 'is_train': True,
            'datasets': {'train': {'gt_size': row.size, 'batch_size_per_gpu': row.batches[0]}}, 'path': {}, **networks,
            'train': {'micro_batch_size': copy.deepcopy(row.micro), 'optim_g': dict(optimizer), 'optim_d': dict(optimizer),
                      'scheduler': {'type': 'MultiStepLR', 'milestones': [1000]}, **losses,
                      'gan_opt': {'type': 'RowGANLoss', 'row': row}, 'optim_wrapper': {'clip_grad': row.clip}}}


class Host:
    """Builds the model of a row at its first use, because a model checks its options while it is built."""

    def __init__(self, options: dict) -> None:
        self.options, self.model, self.nets, self.iterations = options, None, {}, 0

    def build(self):
        self.model = build_model(self.options)
        self.nets.update(g=self.model.net_g, d=self.model.net_d)

    def __call__(self, lq, gt):
        self.iterations += 1
        self.model.feed_data({'lq': lq, 'gt': gt})
        self.model.optimize_parameters(self.iterations)


# A script of one's own does not say what its batches will look like: the step looks at the first one.
UNTOLD = [*WIRING, *[name for name in COUPLING if 'BatchNorm' in name], 'sum', 'one channel', 'GAN only']


@pytest.mark.parametrize(('name', 'told'), [*((name, True) for name in ROWS), *((name, False) for name in UNTOLD)])
def test_row(name, told):
    row = ROWS[name]
    options = options_of(row)
    if not told:
        options.pop('datasets')
    host = Host(options)
    print(judge(row, host, host.nets, host.build, Undivided(row)))


@pytest.mark.parametrize('name', BORDER)
def test_a_part_that_couples_is_not_cut_where_crops_grow(name):
    row = BORDER[name]
    options = options_of(row)
    stages = [{'gt_size': 16, 'until': 1}, {'gt_size': 32}]
    options['custom_hooks'] = [{'type': 'ProgressiveResolutionHook', 'stages': stages}]
    crops, host = CropSize(16), Host(options)  # that of a training set, which the hook asks for
    print(judge(row, host, host.nets, host.build, Undivided(row)))
    assert crops.pixels == 32 and host.model.step.plan.micro.perceptual == 1


@pytest.mark.parametrize('backward', [False, True], ids=['forward', 'backward'])
@pytest.mark.parametrize('name', SHORT_OF_MEMORY)
def test_a_part_that_couples_is_not_cut_when_memory_runs_out(name, backward):
    row = SHORT_OF_MEMORY[name]
    host = Host(options_of(row))

    def make(lq, gt):
        short_of_memory(name, host.model.step, lq, gt, lambda: host(lq, gt), backward=backward)

    print(judge(row, make, host.nets, host.build, Undivided(row)))
