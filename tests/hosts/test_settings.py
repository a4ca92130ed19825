"""The options of a BasicSR training as typed settings."""
import copy
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from sr_bigbatch.hosts.basicsr.settings import DataSettings, TrainingSettings
from sr_bigbatch.memory.predict import Plan
from sr_bigbatch.options import OptionError
from sr_bigbatch.step.plan import WHOLE, MicroBatchSizes, StepPlan

PARTS = {'generator': 2, 'perceptual': 3, 'discriminator': 9}
CHOSEN = Plan('compact', 2, True, {}, 1.0, 1.0)


def read(memory=None, data=True, **train):
    opt = {'network_g': {'type': 'CheckpointedRRDBNet', **({'activation_memory': memory} if memory else {})}, 'scale': 4,
           'train': train, **({'datasets': {'train': {'gt_size': 32, 'batch_size_per_gpu': 8}}} if data else {})}
    before = copy.deepcopy(opt)
    settings = TrainingSettings.from_options(opt)
    assert opt == before
    return settings


@pytest.mark.parametrize(('setting', 'with_data', 'of_a_script'), [
    (3, MicroBatchSizes(3, 3, 3), MicroBatchSizes(3, 3, 3)), (20, MicroBatchSizes(8, 8, 8), MicroBatchSizes(20, 20, 20)),
    ('auto', MicroBatchSizes(8, 8, 8), MicroBatchSizes(WHOLE, WHOLE, WHOLE)),
    (None, MicroBatchSizes(8, 8, 8), MicroBatchSizes(WHOLE, WHOLE, WHOLE)),
    (PARTS, MicroBatchSizes(2, 3, 8), MicroBatchSizes(2, 3, 9))])
def test_a_micro_batch_size_in_all_its_forms(setting, with_data, of_a_script):
    for data, expected in ((True, with_data), (False, of_a_script)):
        plan = read(data=data, micro_batch_size=setting).plan(None)
        assert plan == StepPlan(expected, adapts=setting is not PARTS)


@pytest.mark.parametrize(('setting', 'expected'), [(2, 8), (PARTS, 8), ({**PARTS, 'discriminator': 4}, 4)])
def test_batch_norm_gets_the_whole_batch_unless_its_part_has_a_number(setting, expected):
    assert read(micro_batch_size=setting).plan(nn.BatchNorm2d(1)).micro.discriminator == expected


@pytest.mark.parametrize(('memory', 'train', 'expected'), [
    ('lean', {'micro_batch_size': 'auto'}, (2, 0, 'lean')), ('auto', {'micro_batch_size': 3}, (3, 8, 'compact')),
    ('auto', {'micro_batch_size': 'auto', 'kept_graphs': 1}, (2, 1, 'compact')),
    (None, {'micro_batch_size': 'auto'}, (2, 0, None))])
def test_a_chosen_plan_replaces_what_was_left_to_the_program_and_nothing_else(memory, train, expected):
    given = read(memory, **train)
    assert given.is_automatic
    chosen = given.with_plan(CHOSEN)
    plan = chosen.plan(None)
    assert (plan.micro.generator, plan.kept_graphs, chosen.activation_memory) == expected
    assert not chosen.is_automatic and given.activation_memory == memory


@pytest.mark.parametrize(('setting', 'expected'), [(8, 2), (2, 1), (PARTS, MicroBatchSizes(2, 3, 8)), ('auto', None)])
def test_larger_crops_keep_the_pixels_of_a_micro_batch(setting, expected):
    assert read(micro_batch_size=setting).for_crop(64).micro_batch_size == expected


def test_settings_do_not_change():
    settings = read()
    with pytest.raises(FrozenInstanceError):
        settings.exact = False
    assert (settings.exact, settings.relativistic, settings.verify_every, settings.dtype) == (True, True, 0, torch.float32)


def test_the_memory_policy_of_a_script_cannot_be_chosen():
    with pytest.raises(OptionError, match=r'network_g\.activation_memory is auto.*datasets\.train'):
        read('auto', data=False)


@pytest.mark.parametrize(('more', 'expected'), [
    ({}, 0), ({'num_worker_per_gpu': 3}, 6),
    ({'num_worker_per_gpu': 3, 'prefetch_mode': 'cpu', 'num_prefetch_queue': 4}, 11),
    ({'prefetch_mode': 'cuda'}, 1)])
def test_batches_under_way(more, expected):
    opt = {'num_gpu': 0, 'dist': False, 'datasets': {'train': {'gt_size': 32, 'batch_size_per_gpu': 8, **more}}}
    assert DataSettings.from_options(opt) == DataSettings(32, 8, expected)


@pytest.mark.parametrize('name', ['num_in_ch', 'in_chans', 'in_channels'])
def test_channels_are_found_under_the_names_of_basicsrs_networks(name):
    assert TrainingSettings.from_options({'network_g': {'type': 'any', name: 1}}).channels == 1
