"""What the documents for contributors and users name exists."""
import re

import pytest

import sr_bigbatch
from sr_bigbatch.hosts.basicsr.options import check
from sr_bigbatch.hosts.basicsr.options.reference import BASICSR_KEYS
from sr_bigbatch.options import load
from tests.conftest import ROOT

PATH = re.compile(r'`((?:[\w.]+/)*[\w]+\.(?:py|md|txt|yml))[` ]')


def _exists(name):
    return any((folder / name).is_file() for folder in (ROOT, ROOT / 'sr_bigbatch', ROOT / 'tools'))


@pytest.mark.parametrize('name', sorted(set(PATH.findall((ROOT / 'CONTRIBUTING.md').read_text()))))
def test_every_file_that_contributors_are_sent_to_exists(name):
    assert _exists(name)


def test_every_row_of_where_do_i_change_names_a_file_and_a_test():
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    rows = [line.split('|')[1:-1] for line in text[text.index('## Where'):text.index('## Rules')].splitlines()
            if line.startswith('| ')][1:]
    assert len(rows) > 20
    for wish, files, tests in rows:
        assert PATH.search(files) and re.search(r'`tests/', tests), wish


def test_every_module_of_the_step_is_reached_from_the_contributors_page_or_another_module():
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    sources = '\n'.join(path.read_text() for path in (ROOT / 'sr_bigbatch').rglob('*.py'))
    for path in (ROOT / 'sr_bigbatch' / 'step').glob('*.py'):
        assert path.stem == '__init__' or f'step/{path.name}' in text or f'step.{path.stem} ' in sources, path.name


@pytest.mark.parametrize('name', sorted(set(sr_bigbatch.__all__) - {'install'}))
def test_every_public_name_is_on_the_api_page(name):
    assert re.search(rf'^::: sr_bigbatch\.[\w.]+\.{name}$', (ROOT / 'docs' / 'api.md').read_text(), re.MULTILINE)


def _rows(page):
    """The cells of each row of all tables of a page, by the first cell; the first table counts."""
    rows = {}
    for line in (ROOT / 'docs' / page).read_text().splitlines():
        if line.startswith('| `'):
            key, *cells = (cell.strip() for cell in line.strip('|').split(' | '))
            rows.setdefault(key, cells)
    return rows


KNOWN = {f'{section}.{key}'.lstrip('.') for section, keys in check._SECTIONS.items() for key in keys}
KNOWN |= {f'datasets.train.{key}' for key in check._PAIRED}


@pytest.mark.parametrize('key', sorted(KNOWN))
def test_every_key_of_an_option_file_is_on_its_page_with_default_and_meaning(key):
    cells = _rows('options.md')[f'`{key}`']
    assert len(cells) in (2, 3) and all(cells)


def test_the_page_of_options_names_no_key_that_is_refused():
    assert {f'{section}.{key}'.lstrip('.') for section, keys in BASICSR_KEYS.items() for key in keys} <= KNOWN


def test_what_the_page_calls_required_is_missed():
    for section, keys in check._REQUIRED.items():
        for key in keys:
            assert 'required' in BASICSR_KEYS[section][key][0], key
    for key in check._TRAIN_DATA_REQUIRED:
        assert 'required' in BASICSR_KEYS['datasets.train'][key][0], key


@pytest.mark.parametrize('file', sorted((ROOT / 'options').glob('*.yml')), ids=lambda file: file.stem)
def test_every_key_of_the_shipped_files_is_on_the_page(file):
    rows = _rows('options.md')
    opt = load(file)
    for section in ('path', 'train', 'val', 'logger'):
        assert not [key for key in opt.get(section, {}) if f'`{section}.{key}`' not in rows]
    assert not [key for key in opt if f'`{key}`' not in rows]


def test_keys_stay_whole_in_tables():
    css = (ROOT / 'docs' / 'tables.css').read_text()
    assert 'td:first-child code { white-space: nowrap; }' in css and 'word-break: normal' in css
    assert 'extra_css: [tables.css]' in (ROOT / 'mkdocs.yml').read_text()


@pytest.mark.parametrize(('page', 'missing'), [
    ('options.md', ('train_log.jsonl', 'throughput', 'curves.png', 'another order')),
    ('log.md', ('train_log.jsonl', 'images_per_s', 'curves.png', 'made by `tools/train.py`'))])
def test_what_a_hosts_own_loop_lacks_is_said(page, missing):
    text = (ROOT / 'docs' / page).read_text()
    said = text[text.index("In a host's own loop" if page == 'options.md' else 'In a loop of your host'):]
    assert all(name in said[:1500] for name in missing)


def test_the_api_page_says_what_is_imported_from_where():
    text = (ROOT / 'docs' / 'api.md').read_text()
    said = text[:text.index('are imported from')]
    assert set(re.findall(r'`(\w+)`', said)) == set(sr_bigbatch.__all__) - {'install'}


def test_commands_of_the_readme_are_seen_whole_and_its_tables_have_no_stray_backslash():
    text = (ROOT / 'README.md').read_text()
    blocks = re.findall(r'```\w*\n(.*?)```', text, re.DOTALL)
    assert blocks and max(len(line) for block in blocks for line in block.splitlines()) <= 105
    assert not [line for line in text.splitlines() if line.startswith('|') and '\\|' in line]
