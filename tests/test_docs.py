"""What the documents for contributors and users name exists."""
import re

import pytest

import sr_bigbatch
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
