import pytest

from sr_bigbatch.step.words import count


@pytest.mark.parametrize(('number', 'said'), [
    (0, 'no images'), (0.004, 'less than 1 image'), (0.49, 'less than 1 image'), (0.6, '1 image'), (1, '1 image'),
    (1.4, '1 image'), (1.6, '2 images'), (2, '2 images'), (1234.2, '1234 images')])
def test_a_number_is_said_with_its_noun(number, said):
    assert count(number, 'image') == said


def test_a_plural_of_its_own():
    assert (count(1, 'process', 'processes'), count(2, 'process', 'processes')) == ('1 process', '2 processes')
