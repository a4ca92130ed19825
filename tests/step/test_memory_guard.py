"""What gets smaller when memory runs out."""
import pytest
import torch

from sr_bigbatch.step.memory_guard import MemoryGuard
from sr_bigbatch.step.out_of_memory import OutOfMemory
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan


def _guard(uncuttable=()):
    guard = MemoryGuard(StepPlan(MicroBatchSizes(4, 4, 4)), torch.device('cpu'))
    guard.begin(4, uncuttable)
    return guard


def test_the_part_that_ran_out_is_halved_then_memory_is_released_once_then_the_step_is_given_up():
    guard = _guard()
    guard.note(RuntimeError('CUDA out of memory\nlong explanation'))
    assert guard.shrink('generator').endswith('4 -> 2; the same batch again. (CUDA out of memory)')
    assert guard.plan.now.micro == MicroBatchSizes(2, 4, 4)
    guard.shrink('generator')
    assert 'all unused memory was released' in guard.shrink('generator')
    guard.make_room()
    with pytest.raises(OutOfMemory, match=r'generator.*: it is 1'):
        guard.shrink('generator')


def test_a_part_that_must_see_the_whole_batch_is_not_cut():
    guard = _guard({'discriminator'})
    guard.shrink('discriminator')
    with pytest.raises(OutOfMemory, match='must see the whole batch'):
        guard.shrink('discriminator')
    assert guard.plan.now.micro.discriminator == 4
    assert guard.shrink_something() and guard.plan.now.micro == MicroBatchSizes(2, 2, 4)


def test_trouble_does_not_count_as_quiet():
    guard = _guard()
    guard.shrink('generator')
    assert guard.end(trouble=True) is None
    guard.plan.quiet = 1
    assert 'generator 4' in guard.end(trouble=False)
