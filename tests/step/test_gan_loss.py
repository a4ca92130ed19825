import pytest
import torch

from sr_bigbatch.step.gan_loss import Grades, grade
from tests.reference import GANLoss


@pytest.mark.parametrize('shape', [(6, 1), (6, 1, 4, 4)])
def test_the_generators_gradient_flows_through_the_mean_of_the_fakes(shape):
    loss, real = GANLoss('vanilla'), torch.randn(shape, dtype=torch.float64)
    fake = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = (loss(real - fake.mean(), False) + loss(fake - real.mean(), True)) / 2
    expected.backward()
    grades = grade(loss, real, fake, relativistic=True)
    torch.testing.assert_close(grades.g_fake, fake.grad, rtol=0, atol=0)
    torch.testing.assert_close(grades.g_loss, expected.detach(), rtol=0, atol=0)


def test_weighted_parts_of_a_loss_that_is_a_mean_are_the_whole():
    loss, real, fake = GANLoss('lsgan'), torch.randn(5, 1), torch.randn(5, 1)
    whole = grade(loss, real, fake, relativistic=False)
    parts = [(2 / 5, grade(loss, real[:2], fake[:2], relativistic=False)),
             (3 / 5, grade(loss, real[2:], fake[2:], relativistic=False))]
    for graded, samples in zip(Grades.weighted(parts), (slice(0, 2), slice(2, 5)), strict=True):
        for name, value in vars(whole.at(samples)).items():
            torch.testing.assert_close(getattr(graded, name), value)
