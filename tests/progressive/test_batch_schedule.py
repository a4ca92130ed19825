import pytest

from sr_bigbatch.progressive.batch_schedule import BatchSchedule


def test_milestones():
    schedule = BatchSchedule([{'batch_size': 32, 'until': 10}, {'batch_size': 64, 'until': 20}, {'batch_size': 128}], 128, 2)
    assert [schedule.at(iteration, None) for iteration in (1, 10, 11, 20, 21, 999)] == [32, 32, 64, 64, 128, 128]


def test_by_noise_scale_it_doubles_while_the_gradient_is_noise():
    schedule = BatchSchedule({'start': 16, 'by': 'noise_scale'}, 100)
    noises = (None, 10.0, 20.0, 20.0, 500.0, 500.0, 500.0)
    assert [schedule.at(1, noise) for noise in noises] == [16, 16, 32, 32, 64, 100, 100]


@pytest.mark.parametrize(('settings', 'message'), [
    ([{'batch_size': 64, 'until': 3}, {'batch_size': 32}], 'must grow'), ([{'batch_size': 256}], 'up to the batch'),
    ([{'batch_size': 31}], 'can share'), ([{'batch_size': 32}, {'batch_size': 64}], 'needs batch_size and'),
    ([{'batch_size': 32, 'until': 9}, {'batch_size': 64, 'until': 3}, {'batch_size': 128}], 'must end after'),
    ({'start': 16, 'by': 'magic'}, 'must be a list'), ({'start': 0, 'by': 'noise_scale'}, 'up to the batch')])
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchSchedule(settings, 128, 2)
