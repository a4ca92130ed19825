import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_bigbatch.step.plan import MicroBatchSizes, length, micro_slices


@given(st.integers(1, 300), st.integers(1, 300))
def test_slices_cover_the_batch_once_and_in_order(batch, micro):
    slices = list(micro_slices(batch, micro))
    assert [index for samples in slices for index in range(batch)[samples]] == list(range(batch))
    assert all(1 <= length(samples) <= micro for samples in slices)


@pytest.mark.parametrize('size', [0, -1, 1.5, True, '4'])
def test_a_micro_batch_is_a_positive_integer(size):
    with pytest.raises(ValueError, match='perceptual must be a positive integer'):
        MicroBatchSizes(1, size, 1)


def test_larger_crops_keep_the_pixels_of_a_micro_batch():
    assert MicroBatchSizes(16, 8, 2).for_crop(128, 256) == MicroBatchSizes(4, 2, 1)
