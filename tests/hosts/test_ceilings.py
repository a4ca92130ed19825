"""How much the steps of the shipped option files launch, counted on tensors without values: operations an image."""
import pytest

from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.hosts.basicsr.plan import prediction
from sr_bigbatch.hosts.basicsr.plan.prediction import predict
from sr_bigbatch.hosts.basicsr.settings import TrainingSettings
from sr_bigbatch.options import load
from tests.conftest import ROOT
from tests.counting import Count

MICRO = 4
CEILINGS = {'esrgan_256_bs128.yml': 4000, 'rrdb_psnr_128_bs128.yml': 2430}
"""Operations an image by option file: a twentieth more than with torch 2.13."""


@pytest.mark.parametrize('name', CEILINGS)
def test_an_image_costs_no_more_operations_than_so_many(monkeypatch, name):
    opt = load(ROOT / 'options' / name)
    check(opt, data=False, weights=False)
    settings = TrainingSettings.from_options(opt)
    monkeypatch.setattr(prediction, 'Flops', Count)  # a mode, whose total is told
    one, two = (predict(settings, settings.data.gt_size, parts * MICRO, MICRO, kept=False).flops for parts in (1, 2))
    assert (two - one) / MICRO <= CEILINGS[name]  # without what is done once a step
