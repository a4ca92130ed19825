"""The tools on a GPU: plan, check, verify, upscale; random numbers, precision and the audit."""
import pytest
import torch
import yaml

from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.hosts.basicsr.training.loader import seed_everything
from sr_bigbatch.memory.predict import sustained_flops
from sr_bigbatch.options import OptionError, load
from sr_bigbatch.step.controlled_call import undisturbed
from sr_bigbatch.step.precision import autocast, has_bfloat16
from sr_bigbatch.step.replay import RngState
from sr_bigbatch.tasks.bench_overflow import through_a_storm
from sr_bigbatch.tasks.verify import reduce, verify
from tests.conftest import ROOT, load_tool
from tests.gpu.conftest import DTYPES, MARKS, PRETENDED
from tests.hosts.test_basicsr_models import _batch
from tests.hosts.test_upscale import _photo, _upscale, weights  # noqa: F401  (a fixture)

pytestmark = MARKS
CUDA = torch.device('cuda')


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('tiles', [[], ['--tile', '100', '--overlap', '24']], ids=['whole', 'tiled'])
def test_photographs_are_upscaled(weights, tmp_path, monkeypatch, dtype, tiles):  # noqa: F811
    photo = _photo(tmp_path, convert=lambda image: image[:150, :120])
    assert _upscale(monkeypatch, photo, '--weights', weights[0], '--out', tmp_path / 'out', '--dtype', dtype, *tiles) == 0
    assert (tmp_path / 'out' / 'photo.png').is_file()


@pytest.mark.parametrize('gigabytes', ['4', '8', '12', '24'])
def test_plans_are_made_for_other_cards(opt, tmp_path, monkeypatch, capsys, gigabytes):
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt))
    monkeypatch.setattr('sys.argv', ['plan.py', '-opt', str(tmp_path / 'run.yml'), '--vram', gigabytes, '--val-size', '128'])
    assert load_tool('plan').main() == 0
    assert 'measured here (cuda)' in capsys.readouterr().out


def test_an_option_file_is_checked_for_this_card(opt, tmp_path, monkeypatch):
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt))
    monkeypatch.setattr('sys.argv', ['check.py', '-opt', str(tmp_path / 'run.yml'), '--vram', '4'])
    assert load_tool('check').main() == 0


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_speed_of_the_gpu_is_measured(dtype):
    assert sustained_flops(CUDA, dtype) > 0


@pytest.mark.parametrize('name', ['esrgan_128_bs128', 'rrdb_psnr_128_bs128'])
def test_bfloat16_is_refused_where_it_is_emulated(name):
    opt = load(ROOT / 'options' / f'{name}.yml')
    if has_bfloat16(CUDA):
        check(opt, data=False, weights=False)
    else:
        with pytest.raises(OptionError, match='use float16'):
            check(opt, data=False, weights=False)


@pytest.mark.parametrize('name', ['quickstart', 'progressive_quickstart'])
def test_an_update_is_verified_in_float64(name, values):
    opt = load(ROOT / 'options' / f'{name}.yml')
    reduce(opt)
    assert all(difference.holds for difference in verify(opt, ROOT))


def test_the_audit_is_not_misled_by_benchmarks_and_tf32_and_leaves_them_as_they_were(opt, built):
    torch.backends.cudnn.benchmark = True
    before = (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
    model = built(opt)
    assert model.step.findings
    assert torch.backends.cudnn.benchmark
    assert before == (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)


@pytest.mark.parametrize('precision', ['ieee', 'tf32'])
def test_settings_of_tf32_are_off_inside_the_audit_and_as_before_after_it(precision):
    conv, net = torch.backends.cudnn.conv, torch.nn.Conv2d(3, 3, 3).cuda()
    before, conv.fp32_precision = conv.fp32_precision, precision
    try:
        with undisturbed(net):
            assert conv.fp32_precision == 'ieee' and torch.backends.cudnn.deterministic
            assert not torch.backends.cudnn.benchmark
        assert conv.fp32_precision == precision
    finally:
        conv.fp32_precision = before


def test_the_audit_leaves_the_generator_of_the_gpu_where_it_was():
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Conv2d(3, 3, 3)).cuda()
    before = torch.cuda.get_rng_state()
    with undisturbed(net):
        net(torch.rand(2, 3, 8, 8, device=CUDA))
        torch.rand(5, device=CUDA)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_numbers_of_the_gpu_are_replayed_and_come_back():
    torch.rand(5, device=CUDA)
    saved, before = RngState.capture(CUDA), torch.cuda.get_rng_state()
    torch.rand(5, device=CUDA)
    later = torch.cuda.get_rng_state()
    with saved.replayed(CUDA):
        assert torch.equal(torch.cuda.get_rng_state(), before)
        torch.rand(7, device=CUDA)
    assert torch.equal(torch.cuda.get_rng_state(), later)
    saved.restore(CUDA)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_each_iteration_seeds_the_gpu():
    states = []
    for seed in (1, 2, 1):
        torch.rand(3, device=CUDA)
        seed_everything(seed, CUDA)
        states.append(torch.cuda.get_rng_state())
    assert torch.equal(states[0], states[2]) and not torch.equal(states[0], states[1])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_that_of_cuda(dtype):
    net = torch.nn.Conv2d(3, 4, 3).cuda()
    with autocast(CUDA, dtype):
        assert net(torch.rand(1, 3, 8, 8, device=CUDA)).dtype is dtype
    with autocast(CUDA, torch.float32):
        assert net(torch.rand(1, 3, 8, 8, device=CUDA)).dtype is torch.float32


def test_a_storm_of_overflows_leaves_finite_weights(opt, values):
    log = through_a_storm(opt, 8, range(3, 6))['OverflowSafeOptimWrapper']
    assert len(log) == 8 and all(row['l_g_pix'] == row['l_g_pix'] for row in log)


@pytest.mark.skipif(not PRETENDED, reason='counted below torch, which only the pretend GPU can')
@pytest.mark.parametrize('micro', [4, 2, 1])
def test_what_a_step_sends_to_the_gpu_has_a_ceiling(opt, built, micro):
    import pretend
    opt['train'].update(micro_batch_size=micro, kept_graphs='all')
    model, batch = built(opt), _batch(opt)
    for iteration in (1, 2, 3):
        model.feed_data(batch)
        pretend.reset()
        model.optimize_parameters(iteration)
    counted, images = pretend.counters(), batch['lq'].nbytes + batch['gt'].nbytes
    assert counted.h2d_bytes <= 4 * images and counted.syncs <= 20 + 10 * 4 / micro and counted.mallocs == 0
