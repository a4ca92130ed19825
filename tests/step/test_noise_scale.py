import json

import pytest
import torch
from torch import nn

from sr_bigbatch.report.run_log import LOG_FILE, noise_verdict
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


@pytest.mark.parametrize(('scales', 'said'), [
    ({'generator': 1000}, 'is too small: twice of it would need 0.56 times the updates. The noise scale of the gradient is '
     '1000 images for the generator.'),
    ({'generator': 100}, 'is enough, and not wasteful.'),
    ({'generator': 0.02}, 'is wasteful: half of it would need only 1.00 times the updates. The noise scale of the gradient '
     'is less than 1 image for the generator.'),
    ({'generator': 0.7, 'discriminator': 1000}, 'is a compromise: the discriminator would gain from a larger one, the '
     'generator would not. The noise scale of the gradient is 1 image for the generator and 1000 images for the '
     'discriminator.'),
    ({'generator': 1000, 'discriminator': 1}, 'is a compromise: the generator would gain'),
    ({'generator': 1000, 'discriminator': 100}, 'is a compromise: the generator would gain'),
    ({'generator': 1, 'discriminator': 100}, 'is enough, and not wasteful.'),
    ({'generator': 1000, 'discriminator': 300}, 'is too small: twice of it would need 0.65 times'),
    ({'generator': 1, 'discriminator': 30}, 'is wasteful: half of it would need only 1.19 times')])
def test_both_networks_together_give_one_conclusion(scales, said):
    sentence = batch_size_advice(scales, 128)
    assert sentence.startswith('The effective batch of 128 ') and said in sentence
    assert sum(word in sentence for word in ('too small', 'enough', 'wasteful: half', 'compromise')) == 1
    assert ' 0 images' not in sentence and ' 1 images' not in sentence


def test_the_log_of_a_run_gives_the_same_conclusion(tmp_path):
    log = tmp_path / LOG_FILE
    assert noise_verdict(log) == f'There is no {log}.'
    records = [{'iter': 50, 'batch': 64, 'noise_scale_g': 9.0}, {'iter': 60, 'batch': 128, 'noise_scale_d': 1000.0},
               {'iter': 70, 'batch': 128, 'noise_scale_g': 0.3}, {'iter': 80, 'batch': 128}, {'iter': 80, 'val': 'set'}]
    log.write_text('\n'.join(map(json.dumps, records)))
    assert noise_verdict(log) == batch_size_advice({'generator': 0.3, 'discriminator': 1000.0}, 128)
    log.write_text(json.dumps(records[3]))
    assert 'tells no gradient noise' in noise_verdict(log)
