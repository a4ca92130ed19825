"""The models as BasicSR builds and drives them."""
import copy

import pytest
import torch
from basicsr.data import build_dataset
from basicsr.models.esrgan_model import ESRGANModel

from sr_bigbatch.hosts.basicsr.plan import rehearsal
from sr_bigbatch.hosts.basicsr.plan.prediction import predict
from sr_bigbatch.hosts.basicsr.settings import TrainingSettings
from sr_bigbatch.memory.predict import fit, plans
from sr_bigbatch.memory.target import Target
from sr_bigbatch.nets.rrdb import POLICIES
from sr_bigbatch.options import OptionError
from sr_bigbatch.step.plan import MicroBatchSizes
from sr_bigbatch.step.update import Verdict
from tests.reference import checked, difference


def _batch(opt, count=4, wide=False):
    dataset = build_dataset(opt['datasets']['train'])
    batch = torch.utils.data.default_collate([dataset[index] for index in range(count)])
    return {**batch, 'lq': batch['lq'].double(), 'gt': batch['gt'].double()} if wide else batch


def in_float64(model):
    """Updates are compared in float64: crops of a flat wall make GroupNorm blow float32's rounding up."""
    for name in ('net_g', 'net_d', 'net_g_ema', 'cri_pix', 'cri_gan', 'cri_ldl'):
        if getattr(model, name, None) is not None:
            getattr(model, name).double()
    return model


def _esrgan_of_basicsr(opt):
    """The same options for BasicSR's own model."""
    opt = copy.deepcopy(opt)
    opt['model_type'] = 'ESRGANModel'
    opt['network_g'].update(type='RRDBNet')
    opt['network_g'].pop('activation_memory')
    for key in ('micro_batch_size', 'kept_graphs', 'accumulation', 'optim_wrapper'):
        opt['train'].pop(key)
    return opt


@pytest.mark.parametrize('micro', [1, 3, 4])
def test_three_iterations_equal_those_of_basicsrs_esrgan_model(opt, built, micro):
    opt['train']['micro_batch_size'] = micro
    for name in ('optim_g', 'optim_d'):
        opt['train'][name]['eps'] = 1e-4  # Adam at its first step divides by |gradient|: that would blow rounding up
    theirs, ours = in_float64(built(_esrgan_of_basicsr(opt))), in_float64(built())
    ours.net_g.load_state_dict(theirs.net_g.state_dict())
    ours.net_d.load_state_dict(theirs.net_d.state_dict())
    ours.model_ema(0)
    theirs.model_ema(0)
    start_g, start_d = copy.deepcopy(theirs.net_g), copy.deepcopy(theirs.net_d)
    assert isinstance(ours, ESRGANModel)
    for iteration in range(1, 4):
        batch = _batch(opt, wide=True)
        for model in (theirs, ours):
            model.update_learning_rate(iteration)
            model.feed_data(batch)
            model.optimize_parameters(iteration)
        for name, value in theirs.get_current_log().items():
            assert ours.get_current_log()[name] == pytest.approx(value, rel=1e-6, abs=1e-8)
        if iteration == 1:
            assert difference(ours.net_g, theirs.net_g, start_g) <= 1e-9
            assert difference(ours.net_d, theirs.net_d, start_d) <= 1e-9
            assert difference(ours.net_g_ema, theirs.net_g_ema, start_g) <= 1e-9
    assert difference(ours.net_g, theirs.net_g, start_g) <= 1e-6


def test_a_gan_loss_alone_makes_basicsrs_update(opt, built):
    opt['train'].update(micro_batch_size=3, pixel_opt=None)
    for name in ('optim_g', 'optim_d'):
        opt['train'][name]['eps'] = 1e-4
    theirs, ours = in_float64(built(_esrgan_of_basicsr(opt))), in_float64(built())
    ours.net_g.load_state_dict(theirs.net_g.state_dict())
    ours.net_d.load_state_dict(theirs.net_d.state_dict())
    start_g, batch = copy.deepcopy(theirs.net_g), _batch(opt, wide=True)
    for model in (theirs, ours):
        model.feed_data(batch)
        model.optimize_parameters(1)
    assert difference(ours.net_g, theirs.net_g, start_g) <= 1e-9
    assert set(ours.log_dict) == set(theirs.log_dict) == {'l_g_gan', 'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'}


def test_bfloat16_takes_nearly_the_same_step_and_keeps_float32_weights(opt, built):
    batch, updates = None, {}
    for dtype in ('float32', 'bfloat16'):
        opt['train']['optim_wrapper']['dtype'] = dtype
        model = built(copy.deepcopy(opt))
        batch = batch or _batch(model.opt)
        model.feed_data(batch)
        model.optimizer_g.step = lambda *args, model=model, **kwargs: updates.update(
            {model.dtype: [parameter.grad.clone() for parameter in model.net_g.parameters()]})
        model.optimize_parameters(1)
        assert all(parameter.dtype == torch.float32 for parameter in model.net_g.parameters())
    exact, rounded = (torch.cat([gradient.flatten() for gradient in updates[dtype]])
                      for dtype in (torch.float32, torch.bfloat16))
    assert 0 < (exact - rounded).norm() < 0.1 * exact.norm()


def test_the_average_moves_only_with_a_true_step(opt, built):
    model = built()
    model.feed_data(_batch(model.opt))
    before = copy.deepcopy(model.net_g_ema)
    checked(model.step, model.lq, model.gt)
    handle = next(model.net_g.parameters()).register_hook(lambda gradient: gradient * float('nan'))
    model.optimize_parameters(1)
    assert model.report.verdicts == {'g': Verdict.REFUSED, 'd': Verdict.COMMITTED}
    assert all(torch.equal(p, q) for p, q in zip(model.net_g_ema.parameters(), before.parameters(), strict=True))
    handle.remove()
    model.optimize_parameters(2)
    assert not all(torch.equal(p, q) for p, q in zip(model.net_g_ema.parameters(), before.parameters(), strict=True))


def test_gradient_clipping_of_the_wrapper_is_used(opt, built):
    opt['train']['optim_wrapper']['clip_grad'] = {'max_norm': 1e-8}
    for name in ('optim_g', 'optim_d'):
        opt['train'][name]['eps'] = 1.0
    model = built()
    before = copy.deepcopy(model.net_g)
    model.feed_data(_batch(model.opt))
    model.optimize_parameters(1)
    moved = sum((p - q).norm() for p, q in zip(model.net_g.parameters(), before.parameters(), strict=True))
    assert 0 < moved < 1e-6


def test_auto_predicts_a_micro_batch_within_the_budget(opt, built):
    opt['train'].update(micro_batch_size='auto', memory_budget_gb=4)
    assert built(copy.deepcopy(opt)).first_plan.micro.generator == 4
    model = fit(lambda batch, micro: predict(TrainingSettings.from_options(opt), 32, batch, micro, True, 'cpu'), 4)
    known = plans({('lean', True): model}, 1.0, Target('cpu'))
    for plan in known:
        budget = plan.total_bytes + 0.05 * max(plan.peak.values())
        opt['train']['memory_budget_gb'] = budget / 1e9
        expected = max(other.micro for other in known if other.total_bytes <= budget)
        model = built(copy.deepcopy(opt))
        assert model.first_plan.micro.generator == expected
        assert not any(parameter.grad is not None for parameter in model.net_g.parameters())
    opt['train']['memory_budget_gb'] = 0.001
    with pytest.raises(OptionError, match=r'even one sample of 32 px .* and there are 0.00 GB'):
        built(copy.deepcopy(opt))


def test_auto_also_chooses_what_is_kept(opt, built):
    opt['train'].update(micro_batch_size='auto', memory_budget_gb=4)
    opt['network_g']['activation_memory'] = 'auto'
    model = built(copy.deepcopy(opt))
    assert model.opt['network_g']['activation_memory'] == 'lean' and model.first_plan.kept_graphs == 4
    assert model.net_g.recompute == POLICIES['lean']


def test_an_automatic_plan_that_takes_more_than_predicted_is_made_smaller(opt, built, monkeypatch):
    opt['train'].update(micro_batch_size='auto', memory_budget_gb=4)
    opt['model_type'] = 'AccumulatingSRModel'  # a generator's activations outweigh its weights and Adam's moments
    for key in ('gan_opt', 'optim_d', 'kept_graphs'):
        opt['train'].pop(key)
    opt.pop('network_d')
    real = rehearsal.peak_of
    sizes = []

    def hungry(run, device, before):
        peak = real(run, device, before)
        sizes.append(peak)
        return 10**10 if len(sizes) < 2 else peak

    monkeypatch.setattr(rehearsal, 'peak_of', hungry)
    model = built()
    assert model.first_plan.micro == MicroBatchSizes(2, 2, 2) == model.step.trial.memory.plan.wanted.micro
    assert sizes[1] < sizes[0]


def _failing(failures: list[Exception]):
    """A forward hook that raises each of ``failures`` once."""
    def hook(*_):
        if failures:
            raise failures.pop()
    return hook


def test_a_validation_image_that_does_not_fit_is_still_validated(opt, built):
    model, failures = built(), [torch.OutOfMemoryError('CUDA out of memory')] * 2
    model.feed_data(_batch(model.opt))
    model.test()
    expected = model.output
    model.net_g_ema.register_forward_hook(_failing(failures))
    model.test()
    assert torch.equal(model.output, expected) and model.net_g.training and not failures
    failures += [torch.OutOfMemoryError('CUDA out of memory')] * 3
    with pytest.raises(RuntimeError, match='out of memory'):
        model.test()


def test_memory_that_runs_out_in_a_training_is_logged_and_counted(opt, built, caplog):
    model, failures = built(), [torch.OutOfMemoryError('CUDA out of memory')]
    model.feed_data(_batch(model.opt))
    checked(model.step, model.lq, model.gt)
    model.net_g.register_forward_hook(_failing(failures))
    model.optimize_parameters(1)
    assert model.report.verdicts == {'g': Verdict.COMMITTED, 'd': Verdict.COMMITTED}
    assert model.get_current_log()['n_out_of_memory'] == 1
    assert model.step.plan.micro == MicroBatchSizes(1, 2, 2)
    assert model.events.summary() == 'In the whole run: 1 x out of memory.'


def test_batch_norm_judges_the_whole_batch_or_is_refused(opt, built):
    opt['network_d']['norm'] = 'batch'
    assert built(copy.deepcopy(opt)).first_plan.micro.discriminator == 4
    opt['train']['micro_batch_size'] = {'generator': 2, 'perceptual': 2, 'discriminator': 2}
    with pytest.raises(OptionError, match=r'network_d normalises .* 2 of 4 .*micro_batch_size.*norm: group.*plain'):
        built(copy.deepcopy(opt))
    opt['train']['accumulation'] = 'plain'
    model = built(copy.deepcopy(opt))
    model.feed_data(_batch(model.opt))
    model.optimize_parameters(1)


def test_several_gpus_in_one_process_are_refused(opt, built, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    opt['num_gpu'] = 2
    with pytest.raises(OptionError, match='one process per GPU'):
        built()


def test_the_psnr_stage_needs_no_discriminator(opt, built):
    opt['model_type'] = 'AccumulatingSRModel'
    for key in ('gan_opt', 'optim_d', 'kept_graphs'):
        opt['train'].pop(key)
    opt.pop('network_d')
    opt['train']['optim_g']['eps'] = 1e-4
    models, batch = {}, None
    for micro in (4, 3):
        opt['train']['micro_batch_size'] = micro
        models[micro] = model = in_float64(built(copy.deepcopy(opt)))
        start = copy.deepcopy(model.net_g)
        batch = batch or _batch(model.opt, wide=True)
        model.feed_data(batch)
        model.optimize_parameters(1)
        assert set(model.get_current_log()) == {'l_pix'}
    assert difference(models[3].net_g, models[4].net_g, start) <= 1e-9


def test_artifact_loss_is_taken_as_realesrgan_takes_it(opt, built):
    opt['train']['ldl_opt'] = {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}
    opt['train']['optim_g']['eps'] = 1e-4
    updates, batch = {}, None
    for micro in (4, 1):
        opt['train']['micro_batch_size'] = micro
        updates[micro] = model = in_float64(built(copy.deepcopy(opt)))
        start = copy.deepcopy(model.net_g)
        with torch.no_grad():  # an average that differs from the generator, so that the map is not empty
            model.net_g_ema.conv_last.bias.add_(0.1)
        batch = batch or _batch(model.opt, wide=True)
        model.feed_data(batch)
        model.optimize_parameters(1)
        assert model.get_current_log()['l_g_ldl'] > 0
    assert difference(updates[1].net_g, updates[4].net_g, start) <= 1e-9


def test_a_batch_that_grows_is_exact_at_every_size(opt, built):
    opt['train']['batch_schedule'] = [{'batch_size': 2, 'until': 1}, {'batch_size': 4}]
    model = built(copy.deepcopy(opt))
    data = _batch(model.opt)
    del opt['train']['batch_schedule']
    opt['datasets']['train']['batch_size_per_gpu'] = 2
    small = built(copy.deepcopy(opt))
    model.feed_data(data)
    model.optimize_parameters(1)
    small.feed_data({key: value[:2] for key, value in data.items()})
    small.optimize_parameters(1)
    for mine, expected in zip(model.net_g.parameters(), small.net_g.parameters(), strict=True):
        assert torch.equal(mine, expected)
    model.feed_data(data)
    model.optimize_parameters(2)
    assert len(model.output) == 4
