"""A folder of photographs is enough for a training: the low-resolution images are made, and are those of a preparation."""
import random
import shutil

import cv2
import numpy as np
import pytest
import torch

from sr_bigbatch.hosts.basicsr.dataset import dataset_of
from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.hosts.basicsr.options.notes import notes
from sr_bigbatch.options import OptionError
from sr_bigbatch.tasks.prepare import BUNDLED_VAL, bundled, cut_all
from tests.conftest import run_train


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photographs')
    image = cv2.imread(str(bundled(BUNDLED_VAL)[0]))
    for number, name in enumerate(('größe.png', 'a b.png', 'v1.2.bmp', 'odd.png')):
        part = np.roll(image, 37 * number, 1)[:131 + number, :150 - number]
        (folder / name).write_bytes(cv2.imencode(name[-4:], part)[1].tobytes())
    (folder / 'notes.txt').write_text('no image')
    (folder / '._a.png').write_text('of another program')
    (folder / 'sub').mkdir()
    return folder


def _options(opt, phase, folder, **roots):
    kept = {key: value for key, value in opt['datasets'][phase].items() if key not in ('dataroot_gt', 'dataroot_lq')}
    return {**kept, 'dataroot_gt': str(folder), 'phase': phase, **roots}


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('phase', ['train', 'val'])
@pytest.mark.parametrize('more', [{}, {'color': 'y'}, {'mean': [0.5, 0.4, 0.3], 'std': [0.2, 0.2, 0.3]}], ids=str)
def test_samples_are_those_of_a_preparation(photos, tmp_path, opt, phase, scale, more):
    files = [file for file in sorted(photos.iterdir()) if file.suffix in ('.png', '.bmp') and file.name[0] != '.']
    cut_all(files, tmp_path / 'gt', tmp_path / 'lq', None, scale, 1, phase)
    opt['datasets']['train'].update(gt_size=24 * scale)
    made = dataset_of({**_options(opt, phase, photos), 'scale': scale, **more})
    prepared = _options(opt, phase, tmp_path / 'gt', dataroot_lq=str(tmp_path / 'lq'))
    prepared = dataset_of({**prepared, 'scale': scale, **more})
    prepared.paths.sort(key=lambda entry: entry['gt_path'])
    assert len(made) == len(prepared) == 4
    for index in [*range(4)] * 3:
        samples = []
        for dataset in (made, prepared):
            random.seed(index)
            samples.append(dataset[index])
        for kind in ('lq', 'gt'):
            torch.testing.assert_close(samples[0][kind], samples[1][kind], rtol=0, atol=1e-6)


@pytest.mark.parametrize('kind', ['PairedImageDataset', 'ProgressivePairedImageDataset'])
@pytest.mark.parametrize('absent', [True, False])
def test_a_training_runs_on_photographs_alone(photos, opt, tmp_path, monkeypatch, capsys, kind, absent):
    for phase in ('train', 'val'):
        dataset = opt['datasets'][phase]
        dataset.update(dataroot_gt=str(photos), dataroot_lq=None, type=kind)
        if absent:
            dataset.pop('dataroot_lq')
    opt['train'].update(total_iter=2)
    opt['datasets']['train'].update(dataset_enlarge_ratio=4, num_worker_per_gpu=1)
    assert run_train(opt, tmp_path, monkeypatch) == 0
    assert 'datasets.train.dataroot_lq is not given: low-resolution images are made' in capsys.readouterr().err
    folder = tmp_path / 'experiments' / 'quickstart'
    assert (folder / 'comparison.png').is_file() and {file.name for file in (folder / 'visualization').iterdir()} == {
        'größe', 'a b', 'v1.2', 'odd'}


def test_what_a_training_needs_is_counted_in_photographs(photos, opt, tmp_path):
    opt['datasets']['train'].update(dataroot_gt=str(photos), dataroot_lq=None, dataset_enlarge_ratio=1, batch_size_per_gpu=5)
    with pytest.raises(OptionError, match=r'datasets.train has 4 images, which cannot fill a batch of 5'):
        check(opt)
    opt['datasets']['train'].update(batch_size_per_gpu=4, gt_size=132)
    opt['network_d']['input_size'] = 132
    with pytest.raises(OptionError, match=r'is \d+x\d+ pixels, and crops will be 132 pixels wide'):
        check({**opt, 'model_type': 'AccumulatingSRModel', 'network_d': None,
               'train': {**opt['train'], 'gan_opt': None}})


def test_photographs_of_a_list_are_taken(photos, opt, tmp_path):
    (tmp_path / 'list.txt').write_text('odd.png (1,1,3)\nv1.2.bmp (1,1,3)\n', encoding='utf-8')
    made = dataset_of({**_options(opt, 'val', photos), 'scale': 4, 'meta_info_file': str(tmp_path / 'list.txt')})
    assert [sample['gt_path'].rpartition('/')[2] for sample in (made[0], made[1])] == ['odd.png', 'v1.2.bmp']


def test_an_lmdb_of_ground_truth_alone_is_refused_by_name(opt, data):
    opt['datasets']['train'].update(io_backend={'type': 'lmdb'}, dataroot_gt=str(data / 'train_gt.lmdb'), dataroot_lq=None)
    with pytest.raises(OptionError, match=r'datasets.train.dataroot_lq is missing: only from a folder of photographs'):
        check(opt)


def test_who_gives_both_folders_is_told_nothing(opt):
    assert notes(opt) == []


def test_an_unreadable_photograph_is_named(photos, opt, tmp_path, monkeypatch, capsys):
    shutil.copytree(photos, tmp_path / 'photos')
    (tmp_path / 'photos' / 'odd.png').write_bytes(b'PNG')
    opt['datasets']['train'].update(dataroot_gt=str(tmp_path / 'photos'), dataroot_lq=None, dataset_enlarge_ratio=4)
    assert run_train(opt, tmp_path, monkeypatch) == 1
    assert 'odd.png cannot be read' in capsys.readouterr().err
