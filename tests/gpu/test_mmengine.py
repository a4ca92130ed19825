"""Whole trainings in mmengine's Runner on a GPU."""
import pytest
import torch

from tests.gpu.conftest import DTYPES, MARKS
from tests.hosts.test_mmengine_runner import _run, config  # noqa: F401  (the fixture)

pytestmark = [*MARKS, pytest.mark.filterwarnings('ignore')]  # mmengine's own


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('growth', ['append', 'prepend'])
def test_the_runner_crosses_a_border_saves_validates_and_goes_on(config, tmp_path, monkeypatch, growth, dtype):  # noqa: F811
    size = {'append': 64, 'prepend': 32}[growth]
    config.train_dataloader.dataset.opt.gt_size = config.model.net_d.input_size = size
    config.custom_hooks[0].update(stages=[{'gt_size': size, 'until': 2}, {'gt_size': 2 * size}], growth=growth,
                                  fade_iters=2 if growth == 'prepend' else 0)
    for name in ('net_g', 'net_d'):
        config.optim_wrapper[name].dtype = dtype
    config.train_cfg.update(max_iters=3, val_interval=3)
    assert _run(config, tmp_path, monkeypatch) == 0
    assert _run(config, tmp_path, monkeypatch, '--resume', '--cfg-options', 'train_cfg.max_iters=4') == 0
    saved = torch.load(tmp_path / 'work' / 'iter_4.pth', weights_only=False, map_location='cpu')
    assert saved['growths'] == [growth] and saved['meta']['iter'] == 4
    log = '\n'.join(path.read_text() for path in (tmp_path / 'work').rglob('*.log'))
    assert 'psnr:' in log and f'has grown to {2 * size} px ({growth})' in log


def test_the_runner_trains_with_workers(config, tmp_path, monkeypatch):  # noqa: F811
    config.train_dataloader.update(num_workers=1, persistent_workers=True, pin_memory=True)
    config.train_cfg.update(max_iters=4, val_interval=4)
    assert _run(config, tmp_path, monkeypatch) == 0
