"""What an observer is told."""
from sr_bigbatch.step.observer import NoObserver
from tests.step.small import adversarial, batch


class Log:
    """Writes down what it is told."""

    def __init__(self):
        self.phases, self.parts = [], []

    def on_phase(self, name):
        self.phases.append(name)

    def on_part(self, part, samples):
        self.parts.append((part, samples.stop - samples.start))


def test_phases_come_in_the_order_of_work_and_parts_with_their_samples():
    log = Log()
    step = adversarial(micro_batch_size={'generator': 2, 'perceptual': 3, 'discriminator': 3}, observer=log)
    step(*batch(3))
    assert list(dict.fromkeys(log.phases)) == ['generate', 'judge', 'grade', 'learn', 'commit']
    assert {part for part in log.parts} >= {('generator', 2), ('generator', 1), ('discriminator', 3)}


def test_a_step_without_observer_has_one_that_does_nothing():
    step = adversarial()
    assert isinstance(step.trial.observer, NoObserver)
    assert step(*batch(2)).committed == {'g', 'd'}
