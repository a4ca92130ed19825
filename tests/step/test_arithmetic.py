"""Which arithmetic float32 gets on a GPU: as told, and float32's own where updates are compared."""
import types

import pytest
import torch

from sr_bigbatch.step import arithmetic
from sr_bigbatch.step.arithmetic import reproducible, set_tf32
from tests.step.small import batch, supervised

OWNERS = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn


@pytest.fixture(autouse=True)
def _as_before():
    before = [owner.fp32_precision for owner in OWNERS]
    yield
    for owner, value in zip(OWNERS, before, strict=True):
        owner.fp32_precision = value


def _now():
    return {owner.fp32_precision for owner in OWNERS}


@pytest.mark.parametrize(('allowed', 'value'), [(True, 'tf32'), (False, 'ieee')])
def test_tf32_is_as_told_and_what_is_not_told_stays(allowed, value):
    set_tf32(allowed)
    assert _now() == {value}
    set_tf32(None)
    assert _now() == {value}
    with reproducible():
        assert _now() == {'ieee'} and torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert _now() == {value} and not torch.backends.cudnn.deterministic


def test_an_older_torch_is_told_by_its_one_interface(monkeypatch):
    cudnn, matmul = types.SimpleNamespace(allow_tf32=True), types.SimpleNamespace(allow_tf32=False)
    backends = types.SimpleNamespace(cudnn=cudnn, cuda=types.SimpleNamespace(matmul=matmul))
    monkeypatch.setattr(arithmetic, 'torch', types.SimpleNamespace(backends=backends))
    for allowed in (True, False):
        set_tf32(allowed)
        assert cudnn.allow_tf32 is matmul.allow_tf32 is allowed


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('precision', ['tf32', 'ieee', 'none'])
def test_updates_are_compared_without_tf32_whatever_the_training_does(precision, dtype):
    step, images, seen = supervised(), batch(3), []
    step.check(*images)
    twin = step.twin
    step.twin = lambda *parts: (seen.append(_now()), twin(*parts))[1]
    for owner in OWNERS:
        owner.fp32_precision = precision
    step.verify(*images, dtype)
    assert seen == [{'ieee'}] and _now() == {precision}
