"""Snapshots, retries, votes."""
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from sr_bigbatch.step.out_of_memory import OutOfMemory
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.trial import Trial
from sr_bigbatch.step.update import SafeUpdate, Verdict


@dataclass
class Work:
    verdicts: dict = field(default_factory=lambda: {'g': Verdict.USABLE})


@pytest.fixture
def parts():
    trial = Trial(StepPlan(MicroBatchSizes(4, 4, 4)), None, torch.device('cpu'))
    net = nn.BatchNorm1d(1)
    trial.begin(4, ())
    return trial, net, SafeUpdate(torch.optim.SGD(net.parameters(), 1.0))


def test_a_lack_of_memory_has_the_same_attempt_made_again_from_the_same_state(parts):
    trial, net, update = parts
    draws, means = [], []

    def attempt():
        with trial.section():
            trial.at_work('generator', slice(0, 4))
            means.append(net.running_mean.clone())
            draws.append(torch.rand(1))
            net(torch.rand(4, 1)).sum().backward()
            if len(draws) < 3:
                raise torch.OutOfMemoryError('CUDA out of memory')
        return Work()

    work = trial.run(attempt, {'g': net}, {'g': update})
    assert draws[0] == draws[1] == draws[2] and means[0] == means[1] == means[2]
    assert trial.memory.plan.now.micro.generator == 1
    assert [event.kind for event in trial.events] == ['out of memory'] * 2
    before = net.bias.clone()
    trial.commit(work, {'g': update})
    assert work.verdicts == {'g': Verdict.COMMITTED} and net.bias != before


def test_other_errors_end_the_step_and_leave_buffers_as_they_were(parts):
    trial, net, update = parts

    def attempt():
        with trial.section():
            net(torch.rand(4, 1))
            raise RuntimeError('a bug')

    with pytest.raises(RuntimeError, match='a bug'):
        trial.run(attempt, {'g': net}, {'g': update})
    assert net.running_mean == 0


def test_a_process_that_others_wait_for_does_not_begin_again_alone(parts):
    trial, _, _ = parts
    trial.collective = True
    with pytest.raises(OutOfMemory, match='shares its batch statistics'), trial.section():
        raise torch.OutOfMemoryError('CUDA out of memory')


def test_a_rehearsal_leaves_no_trace(parts):
    trial, net, update = parts

    def attempt():
        with trial.section():
            net(torch.rand(4, 1)).sum().backward()
        return Work()

    state = torch.get_rng_state()
    trial.rehearse(attempt, {'g': net}, {'g': update})
    assert net.running_mean == 0 and net.bias.grad is None
    torch.testing.assert_close(torch.get_rng_state(), state)
