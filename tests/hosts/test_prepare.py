"""``tools/prepare_data.py`` as a user meets it."""
import copy
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from basicsr.data import build_dataset
from basicsr.utils.matlab_functions import imresize

from sr_bigbatch.hosts.basicsr.options.files import file_findings
from sr_bigbatch.hosts.basicsr.options.lmdb_check import lmdb_findings
from sr_bigbatch.tasks.prepare import BUNDLED_VAL, Cut, bundled
from tests.conftest import ROOT, load_tool


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    image = cv2.imread(str(bundled(BUNDLED_VAL)[0]))
    cv2.imwrite(str(folder / 'cat.png'), image)
    cv2.imwrite(str(folder / 'grey.jpg'), image[..., 0])
    cv2.imwrite(str(folder / 'cat.bmp'), image)
    cv2.imwrite(str(folder / 'small.png'), image[:60, :200])
    (folder / 'torn.png').write_bytes((folder / 'cat.png').read_bytes()[:200])
    (folder / 'empty.jpg').touch()
    (folder / 'notes.txt').write_text('no image')
    return folder


def _prepare(monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['prepare_data.py', *map(str, arguments), '--processes', '2'])
    return load_tool('prepare_data').main()


def test_photographs_become_aligned_pairs_and_unusable_ones_are_named(photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out'
    assert _prepare(monkeypatch, photos, '--val', photos, '--out', out, '--size', 128, '--step', 100, '--lmdb') == 0
    said = capsys.readouterr().out
    for reason in ('small.png has 200x60 pixels, less than 128x128', 'torn.png cannot be read', 'empty.jpg cannot be read',
                   'cat.png has the name of', 'left out'):
        assert reason in said
    pairs = sorted(path.name for path in (out / 'train_gt').glob('*.png'))
    assert pairs == sorted(path.name for path in (out / 'train_lq').glob('*.png')) and len(pairs) == 2 * 3 * 5
    truth, low = (cv2.imread(str(out / folder / pairs[7])) for folder in ('train_gt', 'train_lq'))
    assert truth.shape == (128, 128, 3) and low.shape == (32, 32, 3)
    expected = (imresize(truth.astype(np.float32) / 255, 1 / 4).clip(0, 1) * 255).round()
    assert np.array_equal(low, expected)
    assert cv2.imread(str(out / 'val_gt' / 'cat.png')).shape == (300, 448, 3)
    settings = {'name': 'packed', 'type': 'PairedImageDataset', 'dataroot_gt': f'{out}/train_gt.lmdb',
                'dataroot_lq': f'{out}/train_lq.lmdb', 'io_backend': {'type': 'lmdb'}, 'phase': 'val', 'scale': 4}
    packed = build_dataset(settings)
    assert len(packed) == len(pairs) and packed[0]['gt'].shape == (3, 128, 128)
    assert (out / 'train_gt.lmdb' / 'meta_info.txt').read_text().count('(128,128,3) 1') == len(pairs)


def test_a_repeated_call_passes_over_what_is_done(photos, tmp_path, monkeypatch):
    arguments = (photos, '--out', tmp_path / 'out', '--size', 128, '--step', 100)
    _prepare(monkeypatch, *arguments)
    folder = tmp_path / 'out' / 'train_gt'
    before = {path: path.stat().st_mtime_ns for path in folder.glob('grey*.png')}
    (folder / '.cat.bmp.done').unlink()  # as if the call had been interrupted there
    (folder / 'cat_s003.png').unlink()
    _prepare(monkeypatch, *arguments)
    assert (folder / 'cat_s003.png').exists()
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob('grey*.png')}


def test_another_cut_into_the_same_folder_is_refused(photos, tmp_path, monkeypatch, capsys):
    assert _prepare(monkeypatch, photos, '--out', tmp_path / 'out', '--size', 128, '--step', 100) == 0
    assert _prepare(monkeypatch, photos, '--out', tmp_path / 'out', '--size', 64) == 2
    assert 'choose another output folder' in capsys.readouterr().err


def test_nothing_usable_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / 'none').mkdir()
    for folder, message in ((tmp_path / 'none', 'holds no image'), (tmp_path / 'nowhere', 'there is no folder')):
        assert _prepare(monkeypatch, folder, '--out', tmp_path / 'out') == 2
        assert message in capsys.readouterr().err
    (tmp_path / 'none' / 'torn.png').write_bytes(b'PNG')
    assert _prepare(monkeypatch, tmp_path / 'none', '--out', tmp_path / 'out') == 2
    with pytest.raises(SystemExit):
        _prepare(monkeypatch)


@pytest.mark.parametrize('settings', [(0, 1, 4), (130, 10, 4), (128, 0, 4)])
def test_cuts_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match='must be'):
        Cut(*settings)


def _images(folder):
    return {path.name: path.read_bytes() for path in folder.glob('*.png')}


@pytest.mark.parametrize('replace', ['larger', 'smaller', 'as old', 'same size', 'too small', 'torn'])
@pytest.mark.parametrize('part', ['train', 'val'])
def test_a_photograph_that_was_replaced_under_its_name_is_prepared_anew(photos, tmp_path, monkeypatch, replace, part):
    for path in photos.iterdir():
        path.unlink() if path.name != 'cat.png' else None
    image = cv2.imread(str(photos / 'cat.png'))
    cv2.imwrite(str(photos / 'cat_s001.png'), image)  # its sub-images are not those of cat.png
    folder = tmp_path / 'photos_of_part'
    photos.rename(folder)
    arguments = [folder, *(['--val', folder] if part == 'val' else []), '--size', 128, '--step', 100]
    assert _prepare(monkeypatch, *arguments, '--out', tmp_path / 'out') == 0
    stat = (folder / 'cat.png').stat()
    new = {'larger': np.tile(image, (2, 2, 1)), 'smaller': image[:140, :140], 'as old': image[::-1].copy(),
           'same size': image[:, ::-1].copy(), 'too small': image[:3, :3], 'torn': None}[replace]
    if new is None:
        (folder / 'cat.png').write_bytes((folder / 'cat.png').read_bytes()[:100])
    else:
        cv2.imwrite(str(folder / 'cat.png'), new)
    if replace == 'as old':
        os.utime(folder / 'cat.png', ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for out in ('out', 'fresh'):
        assert _prepare(monkeypatch, *arguments, '--out', tmp_path / out) == 0
    for kind in ('gt', 'lq'):
        assert _images(tmp_path / 'out' / f'{part}_{kind}') == _images(tmp_path / 'fresh' / f'{part}_{kind}')


def test_what_an_earlier_version_has_prepared_is_prepared_anew_once(photos, tmp_path, monkeypatch):
    arguments = (photos, '--out', tmp_path / 'out', '--size', 128, '--step', 100)
    _prepare(monkeypatch, *arguments)
    folder = tmp_path / 'out' / 'train_gt'
    done = folder / '.grey.jpg.done'
    told, before = done.read_text(), _images(folder)
    done.write_text('')  # version 0.1.0 wrote nothing into it
    _prepare(monkeypatch, *arguments)
    assert done.read_text() == told and _images(folder) == before


@pytest.mark.parametrize('home', ['train_gt', 'train_lq', 'val_gt', 'train_gt.lmdb', 'link', 'links to it'])
@pytest.mark.parametrize('role', ['train', 'val'])
def test_photographs_are_never_written_over(photos, tmp_path, monkeypatch, capsys, home, role):
    out, good = tmp_path / 'out', tmp_path / 'good'
    good.mkdir()
    (photos / 'cat.png').rename(good / 'cat.png')
    out.mkdir()
    where = out / ('val_gt' if home.startswith('link') else home)
    good.rename(where)
    before = (where / 'cat.png').read_bytes()
    given = where
    if home == 'link':
        given = tmp_path / 'link'
        given.symlink_to(where)
    elif home == 'links to it':
        given = tmp_path / 'links'
        given.mkdir()
        (given / 'a.png').symlink_to(where / 'cat.png')
    train, val = (given, photos) if role == 'train' else (photos, given)
    assert _prepare(monkeypatch, train, '--val', val, '--out', out, '--size', 128, '--lmdb') == 2
    assert 'choose another --out' in capsys.readouterr().err and (where / 'cat.png').read_bytes() == before
    assert {path.name for path in out.iterdir()} == {where.name}


def test_images_of_another_origin_are_not_written_over(photos, tmp_path, monkeypatch, capsys):
    for name in ('train_gt', 'train_lq'):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / 'cat_s001.png').write_text('of the user')
        assert _prepare(monkeypatch, photos, '--out', tmp_path, '--size', 128) == 2
        assert 'that are not from here' in capsys.readouterr().err
        assert (tmp_path / name / 'cat_s001.png').read_text() == 'of the user'
        (tmp_path / name / 'cat_s001.png').unlink()


NAMES = ['größe', 'with space', 'v1.2.final', 'emoji 🐈', 'plain', 'a%20b', 'komma,(1)', "it's", 'x' * 200, 'ü' * 100]


@pytest.mark.parametrize('part', ['train', 'val'])
def test_an_lmdb_holds_every_photograph_whatever_its_name(photos, tmp_path, monkeypatch, opt, part):
    folder = tmp_path / 'named'
    folder.mkdir()
    image = cv2.imread(str(photos / 'cat.png'))[:140, :140]
    cv2.imwrite(str(folder / 'a.png'), np.zeros_like(image))  # takes few bytes: the size of an LMDB is not that of its first
    for number, name in enumerate(NAMES):
        (folder / f'{name}.png').write_bytes(cv2.imencode('.png', np.roll(image, number * 9, 0))[1].tobytes())
    out = tmp_path / 'out'
    assert _prepare(monkeypatch, folder, '--val', folder, '--out', out, '--size', 128, '--step', 128, '--lmdb') == 0
    settings = {**opt['datasets'][part], 'io_backend': {'type': 'lmdb'}, 'phase': 'val', 'scale': 4,
                **{f'dataroot_{kind}': f'{out}/{part}_{kind}.lmdb' for kind in ('gt', 'lq')}}
    opt['datasets'][part] = {key: value for key, value in settings.items() if key not in ('phase', 'scale')}
    assert not list(file_findings(opt))
    packed, loose = build_dataset(copy.deepcopy(settings)), list((out / f'{part}_gt').glob('*.png'))
    assert len(packed) == len(loose) == (len(NAMES) + 1) * (4 if part == 'train' else 1)
    assert sorted(packed[index]['gt'].sum().item() for index in range(len(packed))) == pytest.approx(sorted(
        cv2.imread(str(file)).sum() / 255 for file in loose))
    keys = [line.partition('.')[0] for line in (out / f'{part}_gt.lmdb' / 'meta_info.txt').read_text().splitlines()]
    assert len(set(keys)) == len(loose) and all(key.isascii() for key in keys)


def test_a_name_that_basicsr_cannot_read_from_an_lmdb_is_a_finding(data, tmp_path):
    shutil.copytree(data / 'train_gt.lmdb', tmp_path / 'a.lmdb')
    (tmp_path / 'a.lmdb' / 'meta_info.txt').write_text('größe.png (1,1,3) 1\n', encoding='utf-8')
    assert 'größe, which is not ASCII' in next(iter(lmdb_findings(tmp_path / 'a.lmdb')))


def test_what_is_left_out_is_told_with_numbers(photos, tmp_path, monkeypatch, capsys):
    for name in ('a.gif', 'b.HEIC', 'c.heic', '.hidden.jpg'):
        (photos / name).touch()
    for folder, names in (('one', 'ab'), ('one/two', 'abc'), ('elsewhere', 'd')):
        (photos / folder).mkdir() if folder != 'elsewhere' else (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(photos / 'grey.jpg', (tmp_path if folder == 'elsewhere' else photos) / folder / f'{name}.jpg')
    (photos / 'link').symlink_to(tmp_path / 'elsewhere')
    (photos / 'circle').symlink_to(photos)
    (photos / 'broken.png').symlink_to(tmp_path / 'nowhere')
    image = cv2.imread(str(photos / 'cat.png'))
    cv2.imwrite(str(photos / 'deep.png'), image.astype(np.uint16) * 257)
    cv2.imwrite(str(photos / 'alpha.png'), np.dstack([image, np.full(image.shape[:2], 128, np.uint8)]))
    cv2.imwrite(str(photos / 'opaque.png'), np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]))
    cv2.imwrite(str(photos / 'float.tiff'), image.astype(np.float32))
    arguments = (photos, '--out', tmp_path / 'out', '--size', 128, '--step', 400)
    assert _prepare(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    for line in ('train: left out: 3 images of formats that are not read (1 .gif, 2 .heic): save them as PNG or JPEG',
                 'train: left out: 1 other file (1 .txt)',
                 'train: left out: 1 subfolder with 5 images (one): --recursive takes them, too',
                 'train: left out: 2 linked folders with 1 image (circle, link): --recursive takes them, too',
                 'train: 1 of 5 photographs have 16 bits a channel; their sub-images have 8',
                 'train: 1 of 5 photographs have transparent parts (alpha); it is left out',
                 'broken.png cannot be read', 'float.tiff has float32 values'):
        assert line in said
    assert 'hidden' not in said
    assert _prepare(monkeypatch, *arguments, '--recursive') == 0
    names = {path.name.partition('_s0')[0] for path in (tmp_path / 'out' / 'train_gt').glob('*.png')}
    assert names >= {'cat', 'grey', 'one_a', 'one_b', 'one_two_a', 'one_two_b', 'one_two_c', 'link_d'}
    assert not any(name.startswith('circle') for name in names)


def test_a_folder_with_nothing_usable_says_what_it_holds(tmp_path, monkeypatch, capsys):
    (tmp_path / 'photos' / 'sub').mkdir(parents=True)
    for name in ('a.heic', 'sub/b.jpg'):
        (tmp_path / 'photos' / name).touch()
    assert _prepare(monkeypatch, tmp_path / 'photos', '--out', tmp_path / 'out') == 2
    error = capsys.readouterr().err
    assert '1 .heic' in error and '1 subfolder with 1 image (sub): --recursive' in error


@pytest.mark.parametrize('record', ['Cut(size=128, step=100, scale=4), scale 4',
                                    'sub-images of 128 px every 100 px at scale 4'])
def test_a_record_of_either_form_is_understood_and_told_in_words(photos, tmp_path, monkeypatch, capsys, record):
    (tmp_path / 'out' / 'train_gt').mkdir(parents=True)
    (tmp_path / 'out' / 'train_gt' / '.cut').write_text(record)
    assert _prepare(monkeypatch, photos, '--out', tmp_path / 'out', '--size', 64, '--step', 100) == 2
    error = capsys.readouterr().err
    assert 'holds sub-images of 128 px every 100 px at scale 4, and sub-images of 64 px every 100 px' in error
    assert 'Cut(' not in error
    assert _prepare(monkeypatch, photos, '--out', tmp_path / 'out', '--size', 128, '--step', 100) == 0


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=str)
@pytest.mark.parametrize('whole_group', [True, False])
def test_a_signal_ends_it_with_one_sentence_and_no_orphans(photos, tmp_path, number, whole_group):
    many = tmp_path / 'many'
    many.mkdir()
    for index in range(200):
        shutil.copy(photos / 'cat.png', many / f'{index}.png')
    out = tmp_path / 'out'
    running = subprocess.Popen(
        [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'prepare_data.py'), str(many), '--out', str(out),
         '--size', '128', '--processes', '2'], env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob('train_gt/.*.done')) and time.monotonic() < deadline:
        time.sleep(0.05)
    (os.killpg if whole_group else os.kill)(running.pid, number)
    error = running.communicate(timeout=60)[1].replace('\r', '\n')
    assert running.returncode == 128 + number
    said = [line for line in error.splitlines() if line.strip() and 'photo' not in line.partition(';')[0]]
    assert said == [f'stopped by {number.name}; the same command goes on after the photographs that are done']
    with pytest.raises(ProcessLookupError):  # nobody of its group is left
        for _ in range(50):
            os.killpg(running.pid, 0)
            time.sleep(0.1)
    assert not list(out.glob('train_gt/.*.part'))
    assert 0 < len(list(out.glob('train_gt/.*.done'))) < 200
