"""Spoiled option files: `check` accepts them or says in sentences what is wrong."""
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sr_bigbatch.hosts.basicsr.options.check import check, complete
from sr_bigbatch.options import OptionError, load
from tests.fuzz.bounds import MUTATIONS, bounded
from tests.fuzz.mutations import spoiled_texts, spoiled_trees


def _settings(kind, times=1):
    return settings(max_examples=times * MUTATIONS[kind], derandomize=True, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])


def _judge(file, root, watched):
    """Status 0 or 2, as ``tools/check.py`` gives it; each finding a sentence that is not about a check that stumbled."""
    with bounded(watched):
        try:
            opt = load(file)
            check(opt)
            complete(opt, root, auto_resume=False, debug=False)
        except OptionError as error:
            assert error.findings and all(finding.strip() for finding in error.findings)
            stumbled = [finding for finding in error.findings if 'could not be checked' in finding]
            assert not stumbled
            return 2
        return 0


def _spoil_values(opt, tmp_path, times):
    file, statuses = tmp_path / 'run.yml', []

    @_settings('option values', times)
    @given(spoiled_trees(opt))
    def spoil(spoiled):
        file.write_text(yaml.safe_dump(spoiled, allow_unicode=True))
        statuses.append(_judge(file, tmp_path, tmp_path))

    spoil()
    assert statuses.count(2) > len(statuses) // 2


def _spoil_texts(opt, tmp_path, times):
    file, statuses = tmp_path / 'run.yml', []

    @_settings('option texts', times)
    @given(spoiled_texts(yaml.safe_dump(opt)))
    def spoil(text):
        file.write_text(text, encoding='utf-8')
        statuses.append(_judge(file, tmp_path, tmp_path))

    spoil()
    assert set(statuses) == {0, 2}


def _spoil_bytes(tmp_path, times):
    file = tmp_path / 'run.yml'

    @_settings('option texts', times)
    @given(st.binary(max_size=300))
    def spoil(content):
        file.write_bytes(content)
        assert _judge(file, tmp_path, tmp_path) == 2

    spoil()


def test_a_spoiled_value_is_told_or_harmless(opt, tmp_path):
    _spoil_values(opt, tmp_path, 1)


def test_a_spoiled_text_is_told_or_harmless(opt, tmp_path):
    _spoil_texts(opt, tmp_path, 1)


@pytest.mark.parametrize('value', ['x' * 300, '~nobody_has_this_name/x', 'a/' * 1000, '~', 'x' * 5000], ids=len)
@pytest.mark.parametrize('place', ['datasets.val.dataroot_lq', 'datasets.train.dataroot_gt', 'datasets.train.meta_info_file',
                                   'path.pretrain_network_g', 'path.resume_state', 'path.experiments_root'])
def test_a_path_that_no_system_takes_is_told(opt, tmp_path, place, value):
    *sections, key = place.split('.')
    section = opt
    for name in sections:
        section = section[name]
    section[key] = value
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt))
    assert _judge(tmp_path / 'run.yml', tmp_path, tmp_path) in (2, 0 if key == 'experiments_root' else 2)


@pytest.mark.slow
def test_thousand_spoiled_option_files_are_told_or_harmless(opt, tmp_path):
    _spoil_values(opt, tmp_path, 10)
    _spoil_texts(opt, tmp_path, 10)
    _spoil_bytes(tmp_path, 10)
