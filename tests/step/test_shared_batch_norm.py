"""BatchNorm over processes with a share of a batch each is BatchNorm in one process with the whole batch."""
import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
from basicsr.archs.discriminator_arch import VGGStyleDiscriminator
from torch import nn
from torch.nn import functional as F

from sr_bigbatch.memory.device import saved_bytes
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.step.distributed import alone, gather_batch, my_samples
from sr_bigbatch.step.replay import frozen_running_statistics
from sr_bigbatch.step.shared_batch_norm import batch_norms_over_processes
from tests.processes import run_processes

BATCH = 8
SHARES = {4: [(2, 2, 2, 2), (3, 3, 1, 1)], 2: [(4, 4), (5, 3)]}  # samples of each process, by the number of processes
MAP = (3, 5, 4)


def _layers(*norms):
    return nn.Sequential(*norms, nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.LeakyReLU(0.2, inplace=True))


CASES = {  # how a network is made, and the shape of a sample
    '1d': (lambda: nn.BatchNorm1d(6), (6,)),
    '1d, maps': (lambda: nn.BatchNorm1d(3), (3, 7)),
    '2d': (lambda: nn.BatchNorm2d(3), MAP),
    '3d': (lambda: nn.BatchNorm3d(3), (3, 2, 3, 2)),
    'sync': (lambda: nn.SyncBatchNorm(3), MAP),
    'not affine': (lambda: nn.BatchNorm2d(3, affine=False), MAP),
    'mean of all batches': (lambda: nn.BatchNorm2d(3, momentum=None), MAP),
    'no running statistics': (lambda: nn.BatchNorm2d(3, track_running_stats=False), MAP),
    'no running statistics, eval': (lambda: nn.BatchNorm2d(3, track_running_stats=False).eval(), MAP),
    'eval': (lambda: _layers(nn.BatchNorm2d(3)).eval(), MAP),
    'one of two in eval': (lambda: _layers(nn.BatchNorm2d(3).eval()), MAP),
    'frozen': (lambda: _layers(nn.BatchNorm2d(3)), MAP),
    'frozen parameters': (lambda: _layers(nn.BatchNorm2d(3).requires_grad_(False)), MAP),
    'ours': (lambda: GrowableVGGDiscriminator(3, 4, 32, 'batch'), (3, 32, 32)),
    'BasicSR': (lambda: VGGStyleDiscriminator(3, 2, 128), (3, 128, 128)),
}
AUTOCAST = ('2d', 'not affine', 'ours')


def _make(name, dtype=torch.float64):
    torch.manual_seed(1)
    make, shape = CASES[name]
    net = make().to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    contrast = torch.linspace(1, 3, BATCH, dtype=dtype).view(BATCH, *[1] * len(shape))  # so that the shares differ
    return net, torch.rand(2, BATCH, *shape, dtype=dtype) * contrast


def _cotangents(outputs, sizes):
    """This process's part of the gradient of a loss that couples all outputs of all processes."""
    everything = gather_batch(outputs.detach().double(), sizes).requires_grad_()
    F.softplus(everything - everything.mean() / 2).square().sum().backward()
    return everything.grad[my_samples(sizes)].to(outputs.dtype)


def _passes(name, net, batches, sizes, shared=True):
    """Two passes, as over real and generated images, and then both backward: everything that they leave behind."""
    mine, results = my_samples(sizes), {}
    frozen = frozen_running_statistics(net) if name == 'frozen' else contextlib.nullcontext()
    with batch_norms_over_processes(net) if shared else contextlib.nullcontext(), frozen:
        inputs = [batch[mine].clone().requires_grad_() for batch in batches]
        outputs = [net(x) for x in inputs]
        for index, (x, output) in enumerate(zip(inputs, outputs, strict=True)):
            output.backward(_cotangents(output, sizes), retain_graph=True)
            results[f'output {index}'], results[f'input gradient {index}'] = output.detach().clone(), x.grad.clone()
            again, = torch.autograd.grad(output, x, _cotangents(output, sizes))  # as a step does for the generator
            assert torch.equal(again, x.grad)
    for key, parameter in net.named_parameters():
        results[f'gradient {key}'] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return results | {f'buffer {key}': buffer for key, buffer in net.named_buffers()}


def _autocast(name, sizes, shared=True):
    net, batches = _make(name, torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        return _passes(name, net, batches.bfloat16() if 'ours' not in name else batches, sizes, shared)


def _far_from_zero(sizes):
    net, x = nn.BatchNorm2d(3), 1000 + torch.randn(BATCH, *MAP, generator=torch.Generator().manual_seed(0))
    with batch_norms_over_processes(net):
        net(x[my_samples(sizes)])
    return dict(net.named_buffers())


def _kept_bytes():
    """What our discriminator keeps for its backward pass, over processes and alone."""
    net, batches = _make('ours')
    with batch_norms_over_processes(net):
        shared = saved_bytes(lambda: net(batches[0]), net)
        with alone():
            return shared, saved_bytes(lambda: net(batches[0]), net)


class _OwnForward(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def _refusals():
    """What is left alone or refused where there are several processes; the texts of the refusals."""
    net, texts = _layers(nn.BatchNorm2d(3)), []
    for wrong in (nn.Sequential(nn.BatchNorm2d(3), _OwnForward(3)), nn.BatchNorm1d(6)):
        try:
            with batch_norms_over_processes(wrong):
                wrong(torch.rand(0, 6))
        except (TypeError, ValueError) as error:
            texts.append(str(error))
        assert not any('forward' in vars(module) for module in wrong.modules())
    with batch_norms_over_processes(net), batch_norms_over_processes(net[0]):  # the inner one changes nothing
        x = torch.rand(2 + dist.get_rank(), *MAP)  # processes have different samples: alone, they do not meet
        mine, own = copy.deepcopy(net), _layers(nn.BatchNorm2d(3))
        own.load_state_dict(net.state_dict())
        with alone():
            assert torch.equal(mine(x), own(x))
    assert not any('forward' in vars(module) for module in net.modules())
    return texts


def _process(rank, folder):
    torch.set_num_threads(1)
    for world in SHARES:  # the first processes stay when the others have gone: starting one takes longer than all cases
        if rank < world:
            dist.init_process_group('gloo', init_method=f'file://{folder}/{world}', rank=rank, world_size=world)
            torch.save(_everything(world), f'{folder}/{world}_{rank}.pth')
            dist.destroy_process_group()


def _everything(world):
    found = {}
    for sizes in SHARES[world]:
        found[sizes] = {name: _passes(name, *_make(name), sizes) for name in CASES}
        found[sizes]['autocast'] = {name: _autocast(name, sizes) for name in AUTOCAST}
        found[sizes]['far from zero'] = _far_from_zero(sizes)
    found['refusals'], found['kept bytes'] = _refusals(), _kept_bytes()
    found['apart'] = _passes('2d', *_make('2d'), SHARES[world][0], shared=False)
    return found


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    run_processes(_process, (str(folder),), max(SHARES))
    return folder


@pytest.fixture(scope='module', params=SHARES)
def found(request, folder):
    """What each process has found, in the order of their ranks."""
    return [torch.load(folder / f'{request.param}_{rank}.pth', weights_only=True) for rank in range(request.param)]


def _joined(parts):
    """Concatenated outputs and input gradients, summed gradients of parameters, buffers that all processes agree on."""
    joined = {}
    for key, first in parts[0].items():
        values = [part[key] for part in parts]
        if key.startswith(('output', 'input')):
            joined[key] = torch.cat(values)
        elif key.startswith('gradient'):
            joined[key] = torch.stack(values).sum(0)
        else:
            assert all(torch.equal(first, value) for value in values), key
            joined[key] = first
    return joined


def _errors(joined, expected):
    return {key: float((joined[key].double() - value.double()).norm() / value.double().norm().clamp(min=1))
            for key, value in expected.items()}


@pytest.mark.parametrize('name', CASES)
def test_outputs_gradients_and_running_statistics_are_those_of_one_process(name, found):
    expected = _passes(name, *_make(name), [BATCH], shared=False)
    for sizes in SHARES[len(found)]:
        errors = _errors(_joined([part[sizes][name] for part in found]), expected)
        assert max(errors.values()) <= 1e-10, errors


def test_apart_the_processes_make_something_else(found):
    parts, expected = [part['apart'] for part in found], _passes('2d', *_make('2d'), [BATCH], shared=False)
    assert float((torch.cat([part['output 0'] for part in parts]) - expected['output 0']).norm()) > 0.1


@pytest.mark.parametrize('name', AUTOCAST)
def test_under_autocast_the_difference_is_that_of_rounding(name, found):
    expected = _autocast(name, [BATCH], shared=False)
    for sizes in SHARES[len(found)]:
        joined = _joined([part[sizes]['autocast'][name] for part in found])
        assert all(joined[key].dtype == value.dtype for key, value in expected.items())
        errors = _errors(joined, expected)
        assert max(errors.values()) <= 0.03, errors


def test_statistics_far_from_zero_keep_their_digits(found):
    x = 1000 + torch.randn(BATCH, *MAP, generator=torch.Generator().manual_seed(0))
    net = nn.BatchNorm2d(3).double()
    net(x.double())
    for sizes in SHARES[len(found)]:
        buffers = _joined([part[sizes]['far from zero'] for part in found])
        torch.testing.assert_close(buffers['running_var'].double(), net.running_var, rtol=1e-6, atol=0)
        torch.testing.assert_close(buffers['running_mean'].double(), net.running_mean, rtol=1e-6, atol=0)


def test_our_discriminator_keeps_as_little_over_processes_as_alone(found):
    for part in found:
        shared, own = part['kept bytes']
        assert shared <= 1.02 * own


def test_an_own_forward_and_a_process_without_samples_are_refused(found):
    for part in found:
        own, empty = part['refusals']
        assert own == '_OwnForward has a forward of its own: its statistics cannot be shared by processes'
        assert 'at least one sample in each' in empty


def test_one_process_keeps_its_own_forward():
    net = _layers(nn.BatchNorm2d(3))
    with batch_norms_over_processes(net):
        assert not any('forward' in vars(module) for module in net.modules())
