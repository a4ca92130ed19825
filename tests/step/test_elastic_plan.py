"""A plan that gives way and comes back."""
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
