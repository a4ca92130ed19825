"""What a step says about itself."""
import pytest

from sr_bigbatch.step.report import KINDS, Event, StepReport
from sr_bigbatch.step.update import Verdict


@pytest.mark.parametrize(('verdicts', 'committed'), [
    ({}, set()), ({'g': Verdict.COMMITTED, 'd': Verdict.REFUSED}, {'g'}),
    ({'g': Verdict.COMMITTED, 'd': Verdict.COMMITTED}, {'g', 'd'})], ids=['none', 'one', 'both'])
def test_only_networks_that_moved_are_committed(verdicts, committed):
    assert StepReport({}, None, verdicts).committed == committed


def test_events_are_plain():
    assert len(set(KINDS)) == len(KINDS)
    assert vars(Event('refused', 'd', 'a sentence')) == {'kind': 'refused', 'part': 'd', 'text': 'a sentence', 'samples': ()}
