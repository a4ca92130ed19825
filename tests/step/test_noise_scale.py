import pytest
import torch
from torch import nn

from sr_bigbatch.step.noise_scale import NoiseScale, batch_size_advice
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.supervised_step import SupervisedStep
from sr_bigbatch.step.update import SafeUpdate

DIMENSION, SIGMA = 200, 0.5


class _Linear(nn.Module):
    """Its gradient for a sample is the sample: normal around a mean, so that the noise scale is known in closed form."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(DIMENSION))

    def forward(self, x):
        return (x.flatten(1) * self.weight).sum(1).view(-1, 1, 1, 1)


@pytest.mark.parametrize('micro', [1, 4, 8])
def test_it_is_that_of_a_problem_whose_noise_is_known(micro):
    torch.manual_seed(0)
    mean = torch.randn(DIMENSION)
    expected = DIMENSION * SIGMA**2 / float(mean.square().sum())
    for batch, spread in ((16, 1.0), (16, 8.0)):
        net = _Linear()
        update = SafeUpdate(torch.optim.SGD(net.parameters(), lr=0.0))
        step = SupervisedStep(net, update, lambda output, gt, lq: {'l_pix': output.mean()},
                              plan=StepPlan(MicroBatchSizes(micro, micro, micro)))
        for _ in range(400):
            samples = (mean + spread * SIGMA * torch.randn(batch, DIMENSION)).view(batch, DIMENSION, 1, 1)
            step(samples, torch.zeros(batch, 1, 1, 1))
        assert update.noise.value == pytest.approx(expected * spread**2, rel=0.15)


def test_a_whole_batch_at_once_tells_nothing():
    net = _Linear()
    update = SafeUpdate(torch.optim.SGD(net.parameters(), lr=0.0))
    step = SupervisedStep(net, update, lambda output, gt, lq: {'l_pix': output.mean()},
                          plan=StepPlan(MicroBatchSizes(4, 4, 4)))
    for _ in range(60):
        step(torch.rand(4, DIMENSION, 1, 1), torch.zeros(4, 1, 1, 1))
    assert update.noise.value is None


def test_it_survives_a_resume():
    noise, other = NoiseScale(), NoiseScale()
    for _ in range(60):
        noise.add(torch.tensor(5.0), 2, torch.tensor(2.0), 8)
    other.load_state_dict(noise.state_dict())
    assert other.value == noise.value is not None
    assert noise.value == pytest.approx(((5 - 2) / (1 / 2 - 1 / 8)) / ((8 * 2 - 2 * 5) / 6))


@pytest.mark.parametrize(('value', 'word'), [
    (1000, 'too small: twice of it would need 0.56 times'), (100, 'enough, and not wasteful'),
    (10, 'wasteful: half of it would need only')])
def test_the_verdict_is_a_sentence(value, word):
    assert word in batch_size_advice('generator', value, 128)
