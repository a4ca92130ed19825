"""Docker gives a container 64 MB of /dev/shm; a worker that finds it full is killed without a word."""
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from mmengine.config import Config
from torch.utils.data import default_collate

from sr_bigbatch.hosts import shared_memory
from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.hosts.shared_memory import batch_bytes
from sr_bigbatch.options import OptionError, load
from tests.conftest import ROOT, load_tool

MB = 10**6
SHIPPED = {'quickstart': 1.7, 'progressive_quickstart': 1.7, 'esrgan_128_bs128': 26.7, 'esrgan_256_bs128': 107,
           'esrgan_progressive_128to256_bs128': 107, 'rrdb_psnr_128_bs128': 26.7}
"""Megabytes of a batch, at the largest crops of the training."""


@pytest.fixture
def shm(monkeypatch):
    """``shm(free, whole)`` pretends that /dev/shm has so many bytes free; the pages are small, as those of Linux."""
    def pretend(free, whole=None, folder=Path('/')):
        monkeypatch.setattr(shared_memory, '_FOLDER', folder)
        room = SimpleNamespace(f_bavail=int(free) // 4096, f_blocks=int(whole or free) // 4096, f_frsize=4096)
        monkeypatch.setattr(os, 'statvfs', lambda path: room)

    return pretend


def _findings(opt):
    try:
        check(opt)
    except OptionError as error:
        return [finding for finding in error.findings if 'shm-size' in finding]
    return []


def test_a_batch_is_as_large_as_what_a_worker_hands_over():
    batch = default_collate([{'gt': torch.rand(3, 48, 48), 'lq': torch.rand(3, 12, 12)} for _ in range(5)])
    assert batch_bytes(5, 48, 4, 3) == sum(images.nbytes for images in batch.values())


@pytest.mark.parametrize(('name', 'megabytes'), SHIPPED.items())
@pytest.mark.parametrize(('free', 'whole'), [(64 * MB, 64 * MB), (3 * MB, 8000 * MB), (0, 64 * MB), (16e9, 16e9)],
                         ids=['docker', 'nearly full', 'full', 'large'])
def test_shipped_files_say_when_their_batches_do_not_fit(shm, name, megabytes, free, whole):
    shm(free, whole)
    opt = load(ROOT / 'options' / f'{name}.yml')
    workers = opt['datasets']['train']['num_worker_per_gpu']
    found = _findings(opt)
    assert bool(found) == ((2 * workers + 1) * megabytes * MB > free)
    if found:
        assert len(found) == 1 and found[0].startswith('datasets.train: ')
        assert f'{megabytes:.0f} MB are in' in found[0] and f'{free / MB:.0f} MB are free' in found[0]
        advised = int(found[0].rpartition(' ')[2])
        assert advised == 0 or (2 * advised + 1) * megabytes * MB <= free
        opt['datasets']['train']['num_worker_per_gpu'] = advised
        assert not _findings(opt)


def test_it_is_told_beside_other_mistakes_and_without_workers_nothing_is(opt, shm):
    shm(1000)
    opt['datasets']['train'].update(num_worker_per_gpu=1, dataroot_gt='/nowhere')
    with pytest.raises(OptionError) as caught:
        check(opt)
    assert len(caught.value.findings) == 2 and 'there is no folder /nowhere' in str(caught.value)
    opt['datasets']['train']['num_worker_per_gpu'] = 0
    assert not _findings(opt)


def test_processes_of_one_machine_share_its_memory(opt, shm, monkeypatch):
    opt['datasets']['train']['num_worker_per_gpu'] = 1
    shm(4 * batch_bytes(4, 32, 4, 3) + 4096)
    assert not _findings(opt)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    assert 'up to 6 batches' in _findings(opt)[0]


def test_the_check_asks_about_no_memory_where_there_is_no_such_folder_or_no_file_is_looked_at(opt, shm):
    opt['datasets']['train']['num_worker_per_gpu'] = 1
    shm(0, folder=Path('/no/such/folder'))
    check(opt)
    shm(0)
    check(opt, data=False)


@pytest.mark.parametrize(('changes', 'said'), [({}, 'up to 3 batches of 2 MB'), ({'num_workers': 0}, None),
                                               ({'prefetch_factor': 5}, 'up to 6 batches of 2 MB')], ids=str)
def test_mmengines_runner_is_told_too(shm, tmp_path, monkeypatch, capsys, changes, said):
    config = Config.fromfile(ROOT / 'options' / 'mmengine' / 'quickstart.py')
    config.train_dataloader.update(changes)
    config.work_dir = str(tmp_path / 'work')
    config.train_dataloader.dataset.type = 'NoSuchDataset'  # so that the Runner ends at once where it is reached
    config.dump(str(tmp_path / 'config.py'))
    shm(4 * MB, 64 * MB)
    monkeypatch.setattr('sys.argv', ['train_mmengine.py', str(tmp_path / 'config.py')])
    if said is None:
        with pytest.raises(KeyError, match='NoSuchDataset'):
            load_tool('train_mmengine').main()
        return
    assert load_tool('train_mmengine').main() == 2
    error = capsys.readouterr().err
    assert said in error and 'set train_dataloader.num_workers to 0' in error and not (tmp_path / 'work').exists()


def test_the_command_ends_before_anything_is_written(opt, shm, tmp_path, monkeypatch, capsys):
    shm(0, 64 * MB)
    opt['datasets']['train']['num_worker_per_gpu'] = 2
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt))
    monkeypatch.setattr('sys.argv', ['train.py', '-opt', str(tmp_path / 'run.yml')])
    assert load_tool('train').main() == 2
    assert '--ipc=host' in capsys.readouterr().err and not (tmp_path / 'experiments').exists()
