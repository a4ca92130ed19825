"""A plan that gives way and comes back."""
import pytest

from sr_bigbatch.step.elastic_plan import ElasticPlan
from sr_bigbatch.step.plan import WHOLE, MicroBatchSizes, StepPlan


def _plan(quiet=2):
    return ElasticPlan(StepPlan(MicroBatchSizes(8, WHOLE, 8), kept_graphs=3), quiet)


def test_a_part_is_halved_until_one_and_then_graphs_are_replayed():
    plan = _plan()
    assert [plan.shrink('generator', 8) is not None for _ in range(5)] == [True] * 4 + [False]
    assert (plan.now.micro, plan.now.kept_graphs) == (MicroBatchSizes(1, WHOLE, 8), 0)


def test_what_must_see_the_whole_batch_is_not_cut():
    plan = _plan()
    assert 'kept_graphs' in plan.shrink('discriminator', 8, {'discriminator'})
    assert plan.shrink('discriminator', 8, {'discriminator'}) is None
    assert plan.now.micro.discriminator == 8


def test_it_grows_back_after_a_quiet_time_and_waits_longer_after_a_failed_attempt():
    plan = _plan()
    plan.shrink('generator', 8)
    assert [plan.grow_back(8) is not None for _ in range(2)] == [False, True]
    assert plan.now == plan.wanted
    plan.shrink('generator', 8)
    assert plan.quiet == 4


def test_a_state_is_never_larger_than_what_is_wanted():
    plan, smaller = _plan(), ElasticPlan(StepPlan(MicroBatchSizes(2, 2, 2)))
    smaller.load_state_dict(plan.state_dict())
    assert smaller.now == smaller.wanted
    plan.shrink('generator', 8)
    other = _plan()
    other.load_state_dict(plan.state_dict())
    assert other.now == plan.now


@pytest.mark.parametrize(('wanted', 'now'), [((16, 16, 16, 9), (16, 16, 4, 9)), ((2, 2, 2, 1), (2, 2, 2, 1)),
                                            ((8, 4, 8, 0), (8, 4, 4, 0))])
def test_another_plan_is_taken_but_for_what_memory_has_made_smaller(wanted, now):
    plan = _plan()
    plan.shrink('discriminator', 8)
    other = ElasticPlan(StepPlan(MicroBatchSizes(*wanted[:3]), kept_graphs=wanted[3]))
    other.load_state_dict(plan.state_dict())
    assert (*vars(other.now.micro).values(), other.now.kept_graphs) == now


def test_a_state_of_0_1_0_caps_the_plan():
    plan = _plan()
    plan.shrink('generator', 8)
    state = {name: value for name, value in plan.state_dict().items() if name in ('generator', 'perceptual',
                                                                                 'discriminator', 'kept_graphs')}
    larger = ElasticPlan(StepPlan(MicroBatchSizes(16, 16, 16), kept_graphs=9))
    larger.load_state_dict(state)
    assert (larger.now.micro, larger.now.kept_graphs) == (MicroBatchSizes(4, 16, 8), 3)


def test_a_correction_keeps_the_way_back():
    plan = _plan()
    plan.shrink('generator', 8)
    plan.grow_back(8)
    plan.correct(StepPlan(MicroBatchSizes(4, WHOLE, WHOLE), kept_graphs=3))
    assert plan.wanted.micro == MicroBatchSizes(8, WHOLE, WHOLE)
    assert plan.grow_back(8) is not None and plan.now == plan.wanted  # as many quiet steps as without the correction
