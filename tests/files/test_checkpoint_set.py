import hashlib
import json
import os
import random

import pytest
import torch

from sr_bigbatch.files.checkpoint_set import (
    discard,
    fault,
    files_of,
    finish,
    iterations,
    newest_valid,
    prune,
    seal,
    staged,
    staged_files,
)
from sr_bigbatch.files.storage import save_atomically


@pytest.fixture
def root(tmp_path):
    """An experiment with three sealed saves."""
    for iteration in (1, 2, 3):
        for name in ('net_g', 'net_d'):
            weights = {'weight': torch.full((50,), float(iteration))}
            save_atomically({'params': weights}, tmp_path / f'models/{name}_{iteration}.pth')
        save_atomically({'iter': iteration}, tmp_path / f'training_states/{iteration}.state')
        seal(tmp_path, iteration, files_of(tmp_path, iteration))
    return tmp_path


def _newest(root):
    state, passed_over = newest_valid(root)
    return None if state is None else int(state.stem), passed_over


def test_the_newest_whole_set_is_taken(root):
    assert _newest(root) == (3, [])


def _cut(share):
    def damage(file):
        file.write_bytes(file.read_bytes()[:int(share * file.stat().st_size)])
    return damage


def _flip(file):
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= 1
    file.write_bytes(content)


DAMAGES = {'empty': _cut(0), 'half': _cut(0.5), 'almost whole': _cut(0.99), 'a bit': _flip,
           'gone': lambda file: file.unlink()}
FILES = ['models/net_g_3.pth', 'models/net_d_3.pth', 'training_states/3.state', 'training_states/3.json']


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('name', FILES)
def test_a_damaged_set_is_passed_over_and_named(root, name, damage):
    DAMAGES[damage](root / name)
    found, passed_over = _newest(root)
    if name.endswith('json') and damage in ('gone', 'a bit'):
        assert found in (2, 3)  # without its manifest a whole set is what BasicSR writes; a bit may be in a blank
    elif name.endswith('state') and damage == 'gone':
        assert (found, passed_over) == (2, [])  # no save to be passed over
    else:
        assert found == 2 and len(passed_over) == 1 and passed_over[0].startswith('The save of iteration 3 is passed over: ')


def test_networks_of_another_iteration_are_recognised(root):
    first, third = (root / f'models/net_g_{iteration}.pth' for iteration in (1, 3))
    content = first.read_bytes()
    first.write_bytes(third.read_bytes())
    third.write_bytes(content)
    found, passed_over = _newest(root)
    assert found == 2 and 'models/net_g_3.pth has changed since it was written' in passed_over[0]


def test_a_save_of_basicsr_without_manifest_is_taken_if_it_can_be_read(root):
    (root / 'training_states/3.json').unlink()
    assert _newest(root) == (3, [])
    _cut(0.5)(root / 'models/net_d_3.pth')
    assert _newest(root)[0] == 2


def test_nothing_whole_is_nothing(root):
    for file in root.glob('models/*'):
        file.unlink()
    found, passed_over = _newest(root)
    assert found is None and len(passed_over) == 3


def test_old_sets_go_and_kept_ones_stay(root):
    assert prune(root, 3, 1, keep=[1]) == []
    assert iterations(root) == [1, 3] and fault(root, 1) is None and not list(root.glob('*/*2*'))


@pytest.mark.parametrize(('keep_last', 'written', 'stay'), [
    (1, 3, [3]), (2, 3, [2, 3]), (3, 3, [1, 2, 3]), (9, 3, [1, 2, 3]), (1, 2, [2, 3]), (1, 1, [1, 2, 3]), (2, 2, [1, 2, 3])])
def test_what_is_newer_than_the_set_just_written_is_left_alone(root, keep_last, written, stay):
    assert prune(root, written, keep_last) == [] and iterations(root) == stay


@pytest.mark.parametrize('name', ['models/net_d_2.pth', 'training_states/2.json'])
@pytest.mark.parametrize('damage', ['half', 'almost whole', 'empty'])
def test_a_torn_set_does_not_count(root, name, damage):
    DAMAGES[damage](root / name)
    assert prune(root, 3, 2) == []
    assert fault(root, 1) is None and fault(root, 3) is None
    assert prune(root, 3, 1) == [] and iterations(root) == [3]


def _stage(root, iteration, value):
    for place in files_of(root, 3):
        target = place.with_name(place.name.replace('3', str(iteration)))
        content = {'iter': iteration} if place.suffix == '.state' else {'params': {'weight': torch.full((50,), value)}}
        save_atomically(content, staged(target))
    return staged_files(root, iteration)


@pytest.mark.parametrize('iteration', [3, 4])
def test_what_is_staged_takes_no_place_before_it_is_sealed(root, iteration):
    before = {file: file.read_bytes() for file in root.glob('*/*')}
    assert len(_stage(root, iteration, 9.0)) == 3
    assert {file: file.read_bytes() for file in before} == before and _newest(root) == (3, [])
    discard(root, iteration)
    assert {file: file.read_bytes() for file in root.glob('*/*')} == before
    seal(root, iteration, _stage(root, iteration, 9.0))
    assert _newest(root) == (iteration, []) and not list(root.glob('*/.*'))
    assert torch.load(root / f'models/net_g_{iteration}.pth', weights_only=True)['params']['weight'][0] == 9
    discard(root, iteration)
    assert _newest(root) == (iteration, [])


def test_unfinished_saves_are_removed_at_the_next_start(root):
    before = {file: file.read_bytes() for file in root.glob('*/*')}
    _stage(root, 3, 9.0), _stage(root, 5, 9.0)
    finish(root)
    assert {file: file.read_bytes() for file in root.glob('*/*')} == before


def test_a_manifest_of_another_shape_is_no_crash(root):
    for content in ([], {'files': 3}, {'files': {'models/net_g_3.pth': 1}}, {'files': {'../../etc/passwd': {}}}):
        (root / 'training_states/3.json').write_text(json.dumps(content))
        assert _newest(root)[0] == 2


def _listing(root, **changes):
    return {'iteration': 3, 'files': {name: {'bytes': (root / name).stat().st_size, 'sha256': _sha(root / name)}
                                      for name in FILES[:3]}, **changes}


def _sha(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _only(*names):
    return lambda root: _listing(root, files={name: _listing(root)['files'][name] for name in names})


def _with(name):
    def add(root):
        listing = _listing(root)
        listing['files'][name] = {'bytes': 0, 'sha256': hashlib.sha256().hexdigest()}
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        return listing
    return add


@pytest.mark.parametrize(('manifest', 'said'), [
    (lambda root: {'iteration': 3, 'files': {}}, 'names no training state and no network'),
    (lambda root: {'files': _listing(root)['files']}, 'cannot be read'),
    (lambda root: _listing(root, files=[]), 'names no training state and no network'),
    (lambda root: [], 'cannot be read'),
    (lambda root: {'iteration': 3, 'files': {FILES[0]: 5}}, 'names no training state'),
    (_only(FILES[2]), 'names no network'), (_only(*FILES[:2]), 'names no training state'),
    (_only(FILES[0], FILES[2]), 'net_d_3.pth is not one of its files'),
    (lambda root: _listing(root, iteration=2), 'is that of iteration 2'),
    (lambda root: json.loads((root / 'training_states/2.json').read_text()), 'is that of iteration 2'),
    (_with('models/net_g_2.pth.txt'), 'which belongs to no save'), (_with('../canary'), 'which belongs to no save'),
    (_with('models/../models/net_g_3.pth.x'), 'which belongs to no save'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_manifest_that_is_no_list_of_a_save_is_not_taken_for_one(root, manifest, said):
    (root / 'training_states/3.json').write_text(json.dumps(manifest(root)))
    found, passed_over = _newest(root)
    assert found == 2 and said in passed_over[0]
    assert prune(root, 3, 2) == [] and iterations(root) == [2, 3]


def test_a_state_of_another_iteration_is_recognised_also_without_manifest(root):
    (root / 'training_states/3.json').unlink()
    (root / 'training_states/3.state').write_bytes((root / 'training_states/1.state').read_bytes())
    found, passed_over = _newest(root)
    assert found == 2 and '3.state is that of iteration 1' in passed_over[0]


def test_a_clock_that_goes_backwards_changes_nothing(root):
    for index, file in enumerate(sorted(root.glob('*/*'), reverse=True)):  # the newest save looks oldest
        os.utime(file, (1_000 + index, 1_000 + index))
    assert _newest(root) == (3, [])
    assert prune(root, 3, 2) == [] and iterations(root) == [2, 3]
