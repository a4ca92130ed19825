import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sr_bigbatch.nets.tiling import Tiling, blend_weights, upscale


def _nearest(scale):
    return lambda tile: F.interpolate(tile, scale_factor=scale, mode='nearest')


@given(st.integers(1, 70), st.integers(1, 70), st.integers(9, 40), st.integers(0, 4), st.sampled_from([1, 2, 4]),
       st.sampled_from([np.uint8, np.uint16]))
@settings(max_examples=60, deadline=None)
def test_what_sees_single_pixels_is_the_same_in_tiles(height, width, tile, overlap, scale, dtype):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, 3)).astype(dtype)
    result = upscale(_nearest(scale), image, scale, Tiling(tile, overlap))
    assert result.dtype == dtype
    assert np.array_equal(result, image.repeat(scale, 0).repeat(scale, 1))


def test_what_sees_a_neighbourhood_has_no_seam_with_enough_overlap():
    torch.manual_seed(0)
    kernel = torch.rand(3, 3, 9, 9)
    kernel /= kernel.sum((1, 2, 3), keepdim=True)

    def blur(tile):
        return F.conv2d(F.pad(tile, (4,) * 4, mode='replicate'), kernel)

    image = np.random.default_rng(0).integers(0, 255, (90, 77, 3)).astype(np.uint8)
    whole = upscale(blur, image, 1, Tiling(256, 16)).astype(int)
    assert np.abs(upscale(blur, image, 1, Tiling(40, 16)).astype(int) - whole).max() == 0
    assert np.abs(upscale(blur, image, 1, Tiling(40, 0)).astype(int) - whole).max() > 5  # where there is none


def test_a_tile_that_is_all_overlap_is_refused():
    with pytest.raises(ValueError, match='more than twice as wide'):
        Tiling(32, 16)


@given(st.integers(1, 300), st.integers(9, 60), st.integers(0, 29), st.sampled_from([1, 2, 4]))
@settings(deadline=None)
def test_what_all_tiles_have_of_a_row_sums_up_to_one(length, tile, overlap, scale):
    tiling = Tiling(max(tile, 2 * overlap + 1), overlap)
    spans, total = tiling.spans(length), np.zeros(length * scale)
    for (begin, end), share in zip(spans, blend_weights(spans, overlap, scale), strict=True):
        total[begin * scale:end * scale] += share
    assert np.allclose(total, 1, atol=1e-6)
