"""Progressive runs that are stopped around their borders and go on with the same, or another, division of the batch."""
import shutil

import pytest
import torch

from tests.conftest import run_two_processes
from tests.hosts.test_progressive import _same
from tests.hosts.test_reliability import _fork, _status, _write

TOTAL = 6
_WHOLE = {}  # by the way of growing: where the folder of a run in one piece lies, once there is one
STAGES = {'prepend': [{'gt_size': 32, 'until': 2}, {'gt_size': 64, 'until': 4}, {'gt_size': 128}],  # two borders
          'append': [{'gt_size': 64, 'until': 3}, {'gt_size': 128}]}


def _grows(opt, way):
    del opt['val'], opt['datasets']['val']
    first = STAGES[way][0]['gt_size']
    opt['datasets']['train'].update(type='ProgressivePairedImageDataset', gt_size=first, num_worker_per_gpu=0)
    opt['network_d'].update(type='GrowableVGGDiscriminator', norm='group', input_size=first, num_feat=8)
    opt['network_g'].update(num_feat=4, num_grow_ch=4)
    opt['custom_hooks'] = [{'type': 'ProgressiveResolutionHook', 'growth': way, 'stages': STAGES[way],
                            **({'fade_iters': 1} if way == 'prepend' else {})}]
    opt['train'].update(total_iter=TOTAL, micro_batch_size=2)
    opt['logger']['save_checkpoint_freq'] = 1
    return opt


def _final(folder):
    names = (f'models/net_g_{TOTAL}.pth', f'models/net_d_{TOTAL}.pth', f'training_states/{TOTAL}.state')
    return {name: torch.load(folder / name, weights_only=True) for name in names}


@pytest.fixture(params=['prepend', pytest.param('append', marks=pytest.mark.slow)])
def whole(request, opt, tmp_path, tmp_path_factory):
    """Options, what a run in one piece ends with, and a function that brings the folder to what it was at a kill."""
    way, folder = request.param, tmp_path / 'experiments' / 'quickstart'
    file = _write(_grows(opt, way), tmp_path / 'run.yml')
    if way not in _WHOLE:
        assert _status(_fork(['-opt', file])) == 0
        _WHOLE[way] = tmp_path_factory.mktemp(way) / 'run'
        shutil.copytree(folder, _WHOLE[way])
    else:
        shutil.copytree(_WHOLE[way], folder)

    def back_to(iteration):
        for later in range(iteration + 1, TOTAL + 1):
            for path in (*folder.glob(f'models/net_*_{later}.pth'), *folder.glob(f'training_states/{later}.*')):
                path.unlink()
        return file

    return folder, _final(folder), back_to


def _close(found, expected):
    for name in (name for name in expected if name.startswith('models/')):
        for key, value in expected[name]['params'].items():
            difference = (found[name]['params'][key] - value).abs()  # sums in another order, which Adam makes larger
            assert float(difference.mean()) < 5e-6, (name, key)  # an update moves by 1e-3, of the discriminator by 1e-4
    growths = [state[f'training_states/{TOTAL}.state']['sr_bigbatch']['growths'] for state in (found, expected)]
    assert growths[0] == growths[1] and growths[0]


@pytest.mark.parametrize('stopped', [pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_resumed_around_its_borders_ends_with_the_same_bits(whole, stopped):
    folder, expected, back_to = whole
    assert _status(_fork(['-opt', back_to(stopped), '--auto_resume'])) == 0
    for content in (found := _final(folder)).values():
        content.pop('sr_bigbatch', None)
    _same(found, {name: {key: value for key, value in content.items() if key != 'sr_bigbatch'}
                  for name, content in expected.items()}, f'resumed at {stopped}')


@pytest.mark.parametrize('micro', [
    1, *(pytest.param(size, marks=pytest.mark.slow) for size in (4, {'generator': 1, 'perceptual': 2, 'discriminator': 4}))])
@pytest.mark.parametrize('stopped', [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_run_resumed_with_another_micro_batch_makes_the_same_updates(whole, stopped, micro):
    folder, expected, back_to = whole
    arguments = ['-opt', back_to(stopped), '--auto_resume', '--force_yml', f'train:micro_batch_size={micro}']
    assert _status(_fork(arguments)) == 0
    _close(_final(folder), expected)


@pytest.mark.parametrize('stopped', [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_run_resumed_in_two_processes_makes_the_same_updates(whole, stopped):
    folder, expected, back_to = whole
    said = run_two_processes('train', '-opt', back_to(stopped), '--auto_resume', '--force_yml',
                             'datasets:train:batch_size_per_gpu=2')
    assert 'Since the save: processes was 1 and is 2.' in said
    _close(_final(folder), expected)
