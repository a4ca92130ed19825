"""The real mmagic 1.2.0: its own ESRGAN configuration with our parts. ``make slow`` makes the environment that it needs."""
import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore'),
              pytest.mark.skipif(importlib.util.find_spec('mmagic') is None, reason='mmagic is not installed (make slow)')]

CONFIG = '.mim/configs/esrgan/esrgan_x4c64b23g32_1xb16-400k_div2k.py'


@pytest.fixture
def config(data, tmp_path):
    """mmagic's configuration with small networks, our photographs, and no downloads."""
    from tests.mmagic.importable import import_mmagic
    config = Config.fromfile(Path(import_mmagic().__file__).parent / CONFIG)
    config.custom_imports = dict(imports=['sr_bigbatch.hosts.mmengine.mmagic'])
    importlib.import_module('sr_bigbatch.hosts.mmengine.mmagic')
    config.model.generator.update(type='CheckpointedRRDBNet', mid_channels=8, num_blocks=1, growth_channels=8, init_cfg=None)
    config.model.discriminator.update(type='GrowableVGGDiscriminator', mid_channels=8, input_size=64, norm='group')
    config.model.perceptual_loss = None  # its weights are a download
    for name in ('generator', 'discriminator'):
        config.optim_wrapper[name].update(type='OverflowSafeOptimWrapper', dtype='float32')
    config.custom_hooks = [dict(type='ProgressiveResolutionHook', stages=[dict(gt_size=64, until=2), dict(gt_size=128)])]
    for step in config.train_dataloader.dataset.pipeline:
        if step.type == 'PairedRandomCrop':
            step.update(type='ProgressivePairedRandomCrop', gt_patch_size=64)
    config.train_dataloader.update(batch_size=4, num_workers=0)
    config.train_dataloader.dataset.update(ann_file='', data_root=str(data), data_prefix=dict(img='train_lq', gt='train_gt'))
    for name in ('val', 'test'):
        for key in (f'{name}_dataloader', f'{name}_evaluator', f'{name}_cfg'):
            config.pop(key, None)
    config.train_cfg.update(max_iters=4, val_interval=1000)
    config.default_hooks.checkpoint.out_dir = str(tmp_path / 'checkpoints')
    config.work_dir, config.launcher, config.visualizer = str(tmp_path / 'work'), 'none', None
    return config


def _batch(count=4, size=64):
    from mmagic.structures import DataSample
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return {'inputs': [image[:, ::4, ::4].contiguous() for image in images],
            'data_samples': [DataSample(gt_img=image) for image in images]}


def _model(config, kind, wrapper, **settings):
    from mmagic.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmagic'):
        model = MODELS.build({**copy.deepcopy(config.model), 'type': kind, **settings})
        # So long a step that what float32 rounds off the weights is small beside it.
        settings = {name: {**wrapper, 'optimizer': dict(type='SGD', lr=10.0)} for name in ('generator', 'discriminator')}
        return model, OPTIM_WRAPPER_CONSTRUCTORS.build(
            {'type': 'MultiOptimWrapperConstructor', 'optim_wrapper_cfg': settings})(model)


def _difference(model, reference, start):
    error = sum(float((p - q).square().sum()) for p, q in zip(model.parameters(), reference.parameters(), strict=True))
    moved = sum(float((p - q).square().sum()) for p, q in zip(start.parameters(), reference.parameters(), strict=True))
    return (error / moved)**0.5


def test_the_stock_configuration_runs_with_our_parts_by_type_alone(config):
    runner = Runner.from_cfg(config)
    runner.train()
    assert type(runner.model).__name__ == 'ESRGAN' and runner.model.discriminator.input_size == 128
    assert runner.iter == 4 and runner.model.growths == ['append']


def test_the_accumulating_model_trains_there_across_a_border(config):
    config.model.update(type='AccumulatingMMagicESRGAN', micro_batch_size=2)
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.model.discriminator.input_size == 128
    assert runner.model.step.plan.micro.generator == 1


def test_one_update_is_the_undivided_one_where_mmagics_own_accumulation_is_not(config):
    config.model.discriminator.input_size = 64
    start, _ = _model(config, 'ESRGAN', {'type': 'OptimWrapper'})
    whole, wrappers = _model(config, 'ESRGAN', {'type': 'OptimWrapper'})
    whole.train_step(_batch(), wrappers)
    ours, wrappers = _model(config, 'AccumulatingMMagicESRGAN', {'type': 'OverflowSafeOptimWrapper', 'dtype': 'float32'},
                            micro_batch_size=1)
    ours.train_step(_batch(), wrappers)
    stock, wrappers = _model(config, 'ESRGAN', {'type': 'OptimWrapper', 'accumulative_counts': 4})
    for index in range(4):
        stock.train_step({name: values[index:index + 1] for name, values in _batch().items()}, wrappers)
    for name in ('generator', 'discriminator'):
        networks = [getattr(model, name) for model in (whole, start)]
        print(f'{name}: ours {_difference(getattr(ours, name), *networks):.1e}, '
              f'stock {_difference(getattr(stock, name), *networks):.2f}')
        assert _difference(getattr(ours, name), *networks) <= 1e-5
    assert _difference(stock.discriminator, whole.discriminator, start.discriminator) > 0.1


def test_the_generators_weights_are_mmagics_and_basicsrs():
    from tests.mmagic.importable import import_mmagic
    import_mmagic()
    importlib.import_module('sr_bigbatch.hosts.mmengine.mmagic')
    from basicsr.archs.rrdbnet_arch import RRDBNet as BasicSRRRDBNet
    from mmagic.models.editors.esrgan.rrdb_net import RRDBNet
    theirs = RRDBNet(3, 3, 8, 2, 8)
    ours = __import__('sr_bigbatch.nets.rrdb', fromlist=['*']).CheckpointedRRDBNet(3, 3, 4, 8, 2, 8)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    basicsr = BasicSRRRDBNet(3, 3, 4, 8, 2, 8)
    basicsr.load_state_dict(theirs.state_dict(), strict=True)
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(ours(image), basicsr(image))
    torch.testing.assert_close(ours(image), theirs(image))
