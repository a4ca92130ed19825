"""The table of plans."""
import shlex
from dataclasses import replace

import pytest

from sr_bigbatch.memory.plan_table import describe, suggestion, table
from sr_bigbatch.memory.predict import AS_IT_IS, Plan
from sr_bigbatch.options import override

PLANS = [Plan('standard', 4, True, {'learn': 9e9}, 1.0, 1e12), Plan('lean', 4, False, {'learn': 3e9}, 1.3, 1.3e12)]


def test_the_chosen_plan_is_marked_and_the_next_card_that_helps_is_named():
    lines = table(PLANS, 6).splitlines()
    assert 'does not fit' in next(line for line in lines if line.startswith('standard'))
    assert '<- chosen' in next(line for line in lines if line.startswith('lean'))
    assert lines[-1].startswith('A GPU of 11 GB would do with less work: standard, graphs kept, micro-batch 4')


def test_what_can_be_pasted_is_understood_by_the_command_line():
    options = {'network_g': {'type': 'CheckpointedRRDBNet'}, 'train': {'micro_batch_size': {'generator': 3}}}
    marker, *entries = shlex.split(suggestion({64: PLANS}, 6))
    override(options, entries)
    assert marker == '--force_yml'
    assert options == {'network_g': {'type': 'CheckpointedRRDBNet', 'activation_memory': 'lean'},
                       'train': {'micro_batch_size': 4, 'kept_graphs': 0}}


def test_a_generator_without_the_option_is_not_given_it():
    assert suggestion({64: [replace(PLANS[1], memory=AS_IT_IS)]}, 6) == (
        '--force_yml train:micro_batch_size=4 train:kept_graphs=0')


def test_one_suggestion_fits_all_stages():
    small = [Plan('lean', micro, True, {'learn': micro * 1e9}, 1.0, 1e12) for micro in (1, 2, 4, 8)]
    large = [replace(plan, peak={'learn': plan.micro * 4e9}) for plan in small]
    assert 'micro_batch_size=4 ' in suggestion({64: small, 128: large}, 6)  # 8 becomes 2, which takes 8 GB
    assert 'micro_batch_size=8 ' in suggestion({64: small, 128: large}, 10)
    assert suggestion({64: small, 128: large}, 3) is None


def test_terms_are_explained_and_a_speed_is_told_only_where_it_is_known():
    said = describe({64: PLANS}, 32, 6)
    for column in said.splitlines()[1].split('  '):
        assert not column.strip() or f'\n{column.strip()} ' in said, column
    assert 'FLOP' not in said and 'not known; --tflops' in said
    assert '300' in table(PLANS, 6, 3.9e14) and 'at 390 TFLOP/s' in describe({64: PLANS}, 32, 6, 3.9e14)


@pytest.mark.parametrize('vram', [1, 2])
def test_what_fits_nowhere_is_not_recommended(vram):
    said = describe({64: PLANS}, 32, vram)
    assert '--force_yml' not in said and 'No plan fits' in said and 'A GPU of 4 GB would do with it: lean' in said
