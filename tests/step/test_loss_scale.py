"""The loss scale stays in its range."""
import pytest

from sr_bigbatch.step.loss_scale import LossScale


def test_it_falls_at_an_overflow_down_to_its_floor_and_rises_after_successes_up_to_its_ceiling():
    scale = LossScale(4.0, growth_interval=2, floor=1.0, ceiling=4.0)
    assert [scale.overflow() for _ in range(3)] == [True, True, False]
    assert (scale.value, scale.overflows) == (1.0, 3)
    values = []
    for _ in range(6):
        scale.success()
        values.append(scale.value)
    assert values == [1, 2, 2, 4, 4, 4]


def test_a_constant_scale_stays_one():
    scale = LossScale.constant()
    scale.success()
    assert not scale.overflow() and scale.value == 1.0


def test_a_state_comes_back_within_the_range():
    state = LossScale(2.0**20).state_dict()
    scale = LossScale(4.0, ceiling=8.0)
    scale.load_state_dict(state)
    assert scale.value == 8.0
    scale.load_state_dict({})  # of a disabled GradScaler
    assert scale.value == 8.0
    for lost in (0.0, float('inf'), float('nan')):
        with pytest.raises(ValueError, match='lost its scale'):
            scale.load_state_dict({**state, 'scale': lost})


@pytest.mark.parametrize('settings', [{'floor': 0}, {'init_scale': 0.5}, {'ceiling': 1.0}, {'backoff_factor': 1.0},
                                      {'growth_factor': 0.5}, {'growth_interval': 0}], ids=str)
def test_ranges_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match='loss scale needs'):
        LossScale(**settings)
