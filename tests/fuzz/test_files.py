"""Spoiled saves, logs, images and LMDBs: each is a finding, a reason to pass over, or harmless."""
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sr_bigbatch.files.checkpoint_set import fault, newest_valid
from sr_bigbatch.files.run_lock import FolderInUse, lock_file, only_run_in
from sr_bigbatch.files.storage import BadFile, load_tensors
from sr_bigbatch.hosts.basicsr.images import make_lmdb
from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.hosts.basicsr.training.loader import BadImage, Request, Requested
from sr_bigbatch.options import OptionError
from sr_bigbatch.report.run_log import noise_verdict, read_log, trim_log
from sr_bigbatch.tasks.prepare import cut_all
from tests.conftest import run_train
from tests.fuzz.bounds import MUTATIONS, bounded
from tests.fuzz.mutations import spoiled_bytes


def _settings(kind, times, share):
    return settings(max_examples=times * MUTATIONS[kind] // share, derandomize=True, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])


@pytest.fixture
def saved(opt, tmp_path, monkeypatch):
    """The folder of a run with one save, and a copy of each of its files to be spoiled."""
    del opt['val'], opt['datasets']['val']
    opt['train']['total_iter'] = 2
    assert run_train(opt, tmp_path, monkeypatch) == 0
    return tmp_path / 'experiments' / 'quickstart'


def _spoil_saves(saved, times):
    names = ['training_states/2.state', 'training_states/2.json', 'models/net_g_2.pth', 'train_log.jsonl']
    whole = {name: (saved / name).read_bytes() for name in names}

    @_settings('saved files', times, 1)
    @given(st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), spoiled_bytes(whole[name]))))
    def spoil(change):
        name, content = change
        (saved / name).write_bytes(content)
        log = name.endswith('.jsonl')
        with bounded(*(() if log else (saved,))):
            if log:
                for record in read_log(saved / name):
                    assert isinstance(record['iter'], int)
                noise_verdict(saved / name)
                trim_log(saved / name, 1)
            else:
                assert content == whole[name] or name.endswith('.json') or isinstance(fault(saved, 2), str)
                newest_valid(saved)
                if not name.endswith('.json'):
                    try:
                        load_tensors(saved / name)
                    except BadFile as error:
                        assert str(saved / name) in str(error)
        (saved / name).write_bytes(whole[name])

    spoil()


def _spoil_images(opt, folder, times):
    for kind in ('gt', 'lq'):
        shutil.copytree(opt['datasets']['train'][f'dataroot_{kind}'], folder / kind)
        opt['datasets']['train'][f'dataroot_{kind}'] = str(folder / kind)
    del opt['val'], opt['datasets']['val']
    file = min((folder / 'gt').glob('*.png'))
    png = file.read_bytes()
    jpeg = cv2.imencode('.jpg', cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR))[1].tobytes()

    @_settings('images', times, 2)
    @given(st.sampled_from([png, jpeg]).flatmap(spoiled_bytes))
    def spoil(content):
        file.write_bytes(content)
        with bounded(folder / 'gt', folder / 'lq'):
            try:
                check(opt)
            except OptionError as error:
                assert not any('could not be checked' in finding for finding in error.findings)
            _load(opt)
            assert len(cut_all([file], folder / 'cut', folder / 'cut_lq', None, 4, 1, 'x')) <= 1
        for name in ('cut', 'cut_lq'):
            shutil.rmtree(folder / name)
        file.write_bytes(png)

    spoil()


def _load(opt):
    """The first image as a loader process takes it."""
    from basicsr.utils.registry import DATASET_REGISTRY

    data = {**opt['datasets']['train'], 'phase': 'train', 'scale': opt['scale']}
    data['io_backend'] = dict(data['io_backend'])
    try:
        Requested(DATASET_REGISTRY.get(data['type'])(data))[Request(0, 0, None)]
    except BadImage as error:
        assert '.png' in str(error)


def _spoil_lmdb(opt, folder, times):
    for kind in ('gt', 'lq'):
        source = folder / f'few_{kind}'
        source.mkdir()
        for file in sorted(Path(opt['datasets']['train'][f'dataroot_{kind}']).glob('*.png'))[:5]:
            shutil.copy(file, source)
        opt['datasets']['train'][f'dataroot_{kind}'] = str(make_lmdb(source))
    opt['datasets']['train'].update(io_backend={'type': 'lmdb'}, batch_size_per_gpu=2)
    opt.pop('val', None), opt['datasets'].pop('val', None)
    target = Path(opt['datasets']['train']['dataroot_gt'])
    names = ['data.mdb', 'meta_info.txt']
    whole = {name: (target / name).read_bytes() for name in names}
    mutations = st.one_of(
        st.integers(0, len(whole['data.mdb'])).map(lambda size: ('data.mdb', whole['data.mdb'][:size])),
        spoiled_bytes(whole['meta_info.txt']).map(lambda content: ('meta_info.txt', content)))

    @_settings('images', times, 2)
    @given(mutations)
    def spoil(change):
        name, content = change
        (target / name).write_bytes(content)
        with bounded(target):
            try:
                check(opt)
            except OptionError as error:
                assert not any('could not be checked' in finding for finding in error.findings)
        (target / name).write_bytes(whole[name])

    spoil()


def test_spoiled_saves_and_logs_are_passed_over(saved):
    _spoil_saves(saved, 1)


def test_spoiled_images_are_named(opt, tmp_path):
    _spoil_images(opt, tmp_path, 1)


def test_spoiled_lmdbs_are_told(opt, tmp_path):
    _spoil_lmdb(opt, tmp_path, 1)


@settings(max_examples=30, derandomize=True, deadline=None, database=None,
          suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
@given(content=st.one_of(st.binary(max_size=60), st.sampled_from([b'[' * 4000, b'{"host": 3}', b'{"pid": []}', b'null'])))
def test_a_spoiled_lock_file_is_told_or_replaced(tmp_path, content):
    lock_file(tmp_path / 'run').write_bytes(content)
    try:
        with only_run_in(tmp_path / 'run'):
            pass
    except FolderInUse:
        lock_file(tmp_path / 'run').unlink()


@pytest.mark.slow
def test_many_spoiled_files_are_passed_over_named_or_told(saved, opt, tmp_path):
    _spoil_saves(saved, 10)
    _spoil_lmdb(opt, tmp_path, 10)


@pytest.mark.slow
def test_many_spoiled_images_are_named(opt, tmp_path):
    _spoil_images(opt, tmp_path, 10)
