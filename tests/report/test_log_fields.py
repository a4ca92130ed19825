"""What a training logs, on all its ways out, and what the docs say of it."""
import json
import re

import numpy as np
import pytest
import torch
from basicsr.utils import get_root_logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr_bigbatch.hosts.basicsr.training import train as training
from sr_bigbatch.hosts.basicsr.training.pictures import validation_picture
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


class _Model:
    """As much of a model as a picture asks for; it doubles images."""

    def feed_data(self, data):
        self.lq, self.gt = data['lq'], data.get('gt')

    def test(self):
        self.output = self.lq.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def get_current_visuals(self):
        shown = {'lq': self.lq, 'result': self.output, 'gt': self.gt}
        return {name: image for name, image in shown.items() if image is not None}


@pytest.mark.parametrize(('channels', 'truth', 'width'), [
    (3, (16, 12), 36), (1, (16, 12), 36), (3, (17, 13), 37), (3, None, 24)])
def test_validation_pictures_are_made_of_whatever_is_validated(channels, truth, width):
    sample = {'lq': torch.rand(1, channels, 8, 6), **({'gt': torch.rand(1, channels, *truth)} if truth else {})}
    picture = validation_picture(_Model(), [sample], 2)
    assert picture.shape == (16, width, 3) and picture.dtype == np.uint8
    assert validation_picture(_Model(), [], 2) is None
