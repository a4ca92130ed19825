"""A batch on its way through a step."""
import torch

from sr_bigbatch.step.batch import Batch, Judged
from sr_bigbatch.step.gan_loss import grade
from tests.step.small import batch, gan_loss


def test_a_batch_knows_its_place_among_those_of_all_processes():
    made = Batch(*batch(3), [3])
    assert (len(made), made.total, made.everything, made.mine) == (3, 3, slice(0, 3), slice(0, 3))
    assert made.fake.shape == made.gt.shape


def test_mean_logits_are_weighted_by_the_samples_of_each_part():
    real, fake = torch.randn(3, 1), torch.randn(3, 1)
    made = Batch(*batch(3), [3])
    grades = grade(gan_loss, real, fake, relativistic=True)
    made.grades = [grades.at(slice(0, 2)), grades.at(slice(2, 3))]
    made.judged = [Judged(part, None, real[part], fake[part]) for part in (slice(0, 2), slice(2, 3))]
    losses = made.losses(update_g=True)
    torch.testing.assert_close(losses['out_d_real'], real.mean())
    torch.testing.assert_close(losses['out_d_fake'], fake.mean())
    assert set(losses) - set(made.losses(update_g=False)) == {'l_g_gan'}
