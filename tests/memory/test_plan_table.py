"""The table of plans."""
from sr_bigbatch.memory.plan_table import table
from sr_bigbatch.memory.predict import Plan

PLANS = [Plan('standard', 4, True, {'learn': 9e9}, 1.0, 1e12), Plan('lean', 4, False, {'learn': 3e9}, 1.3, 1.3e12)]


def test_the_chosen_plan_is_marked_and_the_next_card_that_helps_is_named():
    said = table(PLANS, 6, 1e12)
    assert '--force_yml network_g:activation_memory=lean' in said
    lines = said.splitlines()
    assert 'does not fit' in next(line for line in lines if line.startswith('standard'))
    assert '<- chosen' in next(line for line in lines if line.startswith('lean'))
    assert lines[-1].startswith('With 11 GB: standard, graphs kept')


def test_what_fits_nowhere_is_not_recommended():
    assert '--force_yml' not in table(PLANS, 1, 1e12)
