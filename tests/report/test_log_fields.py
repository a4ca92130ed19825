"""What a training logs, on all its ways out, and what the docs say of it."""
import json
import re

import pytest
from basicsr.utils import get_root_logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr_bigbatch.hosts.basicsr.training import train as training
from sr_bigbatch.report.log_fields import EVENT, TRAINING, VALIDATION, reference
from sr_bigbatch.step.report import KINDS
from tests.conftest import ROOT, run_train


def test_the_page_of_the_log_is_that_of_the_code():
    # To write it anew: replace the tables by what sr_bigbatch.report.log_fields.reference() returns.
    assert (ROOT / 'docs' / 'log.md').read_text().endswith(reference())


def test_every_field_has_a_unit_and_a_meaning():
    for fields in (TRAINING, VALIDATION, EVENT):
        assert len({field.name for field in fields}) == len(fields)
        assert all(field.unit and len(field.meaning) > 8 for field in fields)
    assert all(f'n_{kind.replace(" ", "_")}' in reference() and kind in reference() for kind in KINDS)


def _unknown(records):
    known = {field.name for field in TRAINING} | {'n_unreadable'} | {f'n_{kind.replace(" ", "_")}' for kind in KINDS}
    for record in records:
        if 'event' in record:
            yield from record.keys() - {field.name for field in EVENT}
        elif 'val' in record:
            yield from record.keys() - {'iter', 'val', 'psnr', 'ssim'}
        else:
            yield from record.keys() - known


@pytest.fixture
def adversarial(opt):
    opt['train'].update(verify_every=1, optim_wrapper={'type': 'OverflowSafeOptimWrapper', 'dtype': 'float16'})
    opt['train']['ldl_opt'] = {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}
    return opt


@pytest.fixture
def supervised(opt):
    opt['model_type'] = 'AccumulatingSRModel'
    for key in ('gan_opt', 'optim_d', 'net_d_iters', 'net_d_init_iters'):
        del opt['train'][key]
    del opt['network_d']
    return opt


@pytest.mark.parametrize('kind', ['adversarial', 'supervised'])
def test_every_logged_field_is_documented(kind, request, tmp_path, monkeypatch):
    options = request.getfixturevalue(kind)
    options['train']['total_iter'] = 2
    assert run_train(options, tmp_path, monkeypatch) == 0
    lines = (tmp_path / 'experiments' / 'quickstart' / 'train_log.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records and not list(_unknown(records))
    used = {key for record in records for key in record}
    assert used >= ({'l_g_pix', 'l_g_ldl', 'verify_d', 'scale_g'} if kind == 'adversarial' else {'l_pix'})


@pytest.fixture
def first_run(monkeypatch):
    """BasicSR opens a log file for the first run of a process alone."""
    logger = get_root_logger()
    before = list(logger.handlers)
    monkeypatch.setattr('basicsr.utils.logger.initialized_logger', {})
    yield
    for handler in set(logger.handlers) - set(before):
        logger.removeHandler(handler)
        handler.close()


def test_tensorboard_gets_rates_and_images_and_the_screen_no_dump(opt, first_run, tmp_path, monkeypatch, capfd):
    opt['logger']['use_tb_logger'] = True
    opt['name'] = 'with_tensorboard'
    opt['train']['total_iter'] = 3
    real = training.init_tb_logger  # the folder of TensorBoard is beside the tools
    monkeypatch.setattr(training, 'mkdir_and_rename', lambda folder: None)
    monkeypatch.setattr(training, 'init_tb_logger', lambda log_dir: real(log_dir=str(tmp_path / 'tb')))
    assert run_train(opt, tmp_path, monkeypatch) == 0
    events = EventAccumulator(str(tmp_path / 'tb'))
    events.Reload()
    assert {'lr_g', 'lr_d', 'losses/l_g_pix', 'images_per_s'} <= set(events.Tags()['scalars'])
    assert [event.step for event in events.Scalars('lr_d')] == [1, 2, 3]
    assert events.Tags()['images'] == ['images/held_out'] and [event.step for event in events.Images('images/held_out')]
    image = events.Images('images/held_out')[0]
    assert image.width == 3 * image.height
    screen = capfd.readouterr().err
    log = next((tmp_path / 'experiments' / 'with_tensorboard').glob('train_*.log')).read_text()
    assert 'Network: CheckpointedRRDBNet' in screen and re.search(r'CheckpointedRRDBNet, [\d,]+ parameters', screen)
    assert 'Conv2d(' not in screen and 'Conv2d(' in log
