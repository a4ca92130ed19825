"""The pool takes any batch, loses nothing, and lets every pair out once."""
import pytest
import torch

from sr_bigbatch.hosts.basicsr.synthesis.pool import PairPool, packed, unpacked


def _pairs(first, count):
    """Pairs that are told apart by their value."""
    values = torch.arange(first, first + count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return values.expand(count, 3, 2, 2).clone(), values.expand(count, 3, 8, 8).clone()


@pytest.mark.parametrize(('size', 'batch'), [(12, 4), (10, 4), (7, 7), (5, 3), (4, 1)])
def test_pairs_stay_pairs_and_leave_once_at_most(size, batch):
    pool, left = PairPool(size), []
    for iteration in range(12):
        lq, gt = pool.exchange(*_pairs(iteration * batch, batch), seed=iteration)
        assert len(lq) == len(gt) == batch
        assert torch.equal(lq[:, 0, 0, 0], gt[:, 0, 0, 0])
        if iteration >= -(-size // batch):  # until then, a batch enters and goes on
            left += (lq[:, 0, 0, 0] * 255).round().int().tolist()
    assert len(set(left)) == len(left)


def test_a_batch_larger_than_the_pool_is_refused():
    with pytest.raises(ValueError, match='queue_size'):
        PairPool(3).exchange(*_pairs(0, 4), seed=0)


def test_eight_bits_lose_nothing():
    images = torch.arange(256).float().view(1, 1, 16, 16) / 255
    assert packed(images).dtype is torch.uint8 and torch.equal(unpacked(packed(images)), images)
    as_on_a_gpu = torch.nextafter(images, torch.ones(()))
    assert torch.equal(unpacked(packed(as_on_a_gpu)), images)


@pytest.mark.parametrize('images', [torch.tensor([0.5]), torch.tensor([-1 / 255]), torch.tensor([256 / 255])])
def test_other_values_stay_in_float32(images):
    assert torch.equal(unpacked(packed(images)), images)


def test_a_pool_of_photographs_is_a_quarter_as_large_and_goes_over_to_float32_when_it_must():
    pool = PairPool(4)
    pool.exchange(*_pairs(0, 2), seed=0)
    assert pool.state_dict()['gt'].dtype is torch.uint8
    fine = torch.full((2, 3, 8, 8), 0.1234)
    pool.exchange(_pairs(2, 2)[0], fine, seed=1)
    assert pool.state_dict()['lq'].dtype is torch.uint8
    assert pool.state_dict()['gt'].dtype is torch.float32
    left = [pool.exchange(*_pairs(4 + 2 * turn, 2), seed=turn)[1][:, 0, 0, 0] for turn in range(12)]
    assert set(torch.cat(left).tolist()) >= {float(fine[0, 0, 0, 0]), *(torch.tensor([0, 1]) / 255).tolist()}


def test_a_saved_pool_of_another_size_is_refused():
    pool = PairPool(4)
    pool.exchange(*_pairs(0, 2), seed=0)
    with pytest.raises(ValueError, match='holds 4 pairs, this one 6'):
        PairPool(6).load_state_dict(pool.state_dict())
