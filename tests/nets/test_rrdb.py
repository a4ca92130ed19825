"""CheckpointedRRDBNet is BasicSR's RRDBNet, with less memory."""
import copy
import gc

import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.rrdbnet_arch import RRDBNet
from torch import nn

from sr_bigbatch.memory.device import saved_bytes
from sr_bigbatch.nets.dense_block import dense_block
from sr_bigbatch.nets.rrdb import POLICIES, CheckpointedRRDBNet, ResidualDenseBlock
from sr_bigbatch.nets.upsampling_tail import upsampling_tail


def _gradients(net, images, cotangent, dtype=None):
    images = images.clone().requires_grad_()
    with torch.autocast('cpu', dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        output = net(images)
    output.backward(cotangent.to(output.dtype))
    return output, images.grad, [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('scale', [4, 2, 1])
@pytest.mark.parametrize('policy', POLICIES)
def test_output_and_gradients_are_bitwise_those_of_basicsr(policy, scale, dtype):
    host = RRDBNet(3, 3, scale, 16, 2, 8).to(dtype)
    ours = build_network({'type': 'CheckpointedRRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'scale': scale, 'num_feat': 16,
                          'num_block': 2, 'num_grow_ch': 8, 'activation_memory': policy}).to(dtype)
    ours.load_state_dict(host.state_dict(), strict=True)
    images, cotangent = torch.rand(2, 3, 16, 16, dtype=dtype), torch.randn(2, 3, 16 * scale, 16 * scale, dtype=dtype)
    for mine, theirs in zip(_gradients(ours, images, cotangent), _gradients(host, images, cotangent), strict=True):
        if isinstance(mine, list):
            assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
        else:
            assert torch.equal(mine, theirs)
    with torch.no_grad():
        assert torch.equal(ours(images), host(images))


@pytest.mark.parametrize('memory', [{'features': 1}, {'features': 2, 'tail': 1}, {'features': 3, 'tail': 2},
                                    {'blocks': 2}, {'blocks': 3, 'tail': 3}, {'blocks': 9, 'features': 4}], ids=str)
def test_finer_control_changes_what_is_kept_and_nothing_else(memory):
    host, ours = RRDBNet(3, 3, 4, 8, 3, 4).double(), CheckpointedRRDBNet(3, 3, 4, 8, 3, 4, memory).double()
    ours.load_state_dict(host.state_dict())
    images, cotangent = torch.rand(2, 3, 8, 8).double(), torch.randn(2, 3, 32, 32).double()
    mine, theirs = _gradients(ours, images, cotangent), _gradients(host, images, cotangent)
    assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
    assert all(torch.equal(p, q) for p, q in zip(mine[2], theirs[2], strict=True))


def test_channels_last_gives_the_same_up_to_rounding():
    host, ours = RRDBNet(3, 3, 4, 8, 1, 4), CheckpointedRRDBNet(3, 3, 4, 8, 1, 4, 'compact')
    ours.load_state_dict(host.state_dict())
    ours.to(memory_format=torch.channels_last)
    images, cotangent = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 32, 32)
    mine, theirs = _gradients(ours, images.to(memory_format=torch.channels_last), cotangent), _gradients(
        host, images, cotangent)
    torch.testing.assert_close(mine[0], theirs[0])
    for p, q in zip(mine[2], theirs[2], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('recomputed', range(4))
def test_the_tails_backward_passes_gradcheck(recomputed):
    net = CheckpointedRRDBNet(1, 1, 4, 2, 1, 2).double()
    convs = (net.conv_up1, net.conv_up2, net.conv_hr, net.conv_last)
    parameters = [parameter.detach().requires_grad_() for conv in convs for parameter in conv.parameters()]
    features = torch.rand(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *p: upsampling_tail(x, list(p), recomputed), (features, *parameters))


@pytest.mark.parametrize('policy', POLICIES)
def test_under_bfloat16_autocast_gradients_stay_float32_and_close(policy):
    host, ours = RRDBNet(3, 3, 4, 16, 2, 8), CheckpointedRRDBNet(3, 3, 4, 16, 2, 8, policy)
    ours.load_state_dict(host.state_dict())
    images, cotangent = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 64, 64)
    mine = _gradients(ours, images, cotangent, torch.bfloat16)
    theirs = _gradients(host, images, cotangent, torch.bfloat16)
    assert mine[0].dtype == torch.bfloat16 and all(gradient.dtype == torch.float32 for gradient in mine[2])
    for p, q in zip(mine[2], theirs[2], strict=True):
        assert (p - q).norm() <= 2e-2 * q.norm()


def test_same_seed_same_weights_as_basicsr():
    torch.manual_seed(3)
    host = RRDBNet(3, 3, 4, 8, 2, 4).state_dict()
    torch.manual_seed(3)
    ours = CheckpointedRRDBNet(3, 3, 4, 8, 2, 4).state_dict()
    assert list(ours) == list(host) and all(torch.equal(ours[key], host[key]) for key in host)


def test_policies_keep_less_and_less():
    images = torch.rand(1, 3, 32, 32)
    kept = {}
    for policy in POLICIES:
        net = CheckpointedRRDBNet(3, 3, 4, 64, 4, 32, policy)
        kept[policy] = saved_bytes(lambda net=net: net(images), net)
    host = RRDBNet(3, 3, 4, 64, 4, 32)
    stock = saved_bytes(lambda: host(images), host)
    assert kept['minimal'] < kept['compact'] < kept['lean'] < 0.4 * stock


@pytest.mark.parametrize('recomputed', range(5))
def test_the_hand_written_backward_passes_gradcheck(recomputed):
    block = ResidualDenseBlock(4, 2).double()
    parameters = [parameter.detach().mul(5).requires_grad_() for parameter in block.parameters()]
    x = torch.rand(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)

    def both_uses(x, *parameters):
        out, skip = dense_block(x, list(parameters), recomputed)
        return out, skip * 2

    assert torch.autograd.gradcheck(both_uses, (x, *parameters))


def test_two_passes_before_one_backward():
    host, ours = RRDBNet(3, 3, 4, 8, 1, 4).double(), CheckpointedRRDBNet(3, 3, 4, 8, 1, 4).double()
    ours.load_state_dict(host.state_dict())
    first, second = torch.rand(2, 1, 3, 8, 8, dtype=torch.float64)
    for net in (host, ours):
        (net(first).sum() + net(second).square().sum()).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours.parameters(), host.parameters(), strict=True))


@pytest.mark.parametrize('frozen', ['body', 'conv_first'])
def test_frozen_parts_get_no_gradient_and_do_not_disturb_the_others(frozen):
    host, ours = RRDBNet(3, 3, 4, 8, 1, 4).double(), CheckpointedRRDBNet(3, 3, 4, 8, 1, 4).double()
    ours.load_state_dict(host.state_dict())
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    for net in (host, ours):
        getattr(net, frozen).requires_grad_(False)
        net(image).square().sum().backward()
    for p, q in zip(ours.parameters(), host.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)


@pytest.mark.parametrize(('settings', 'message'), [({'scale': 3}, 'scale must be'),
                                                   ({'activation_memory': 'tiny'}, 'activation_memory must be'),
                                                   ({'activation_memory': {'features': 5}}, 'from 0 to 4'),
                                                   ({'activation_memory': {'blocks': -1}}, 'activation_memory.blocks'),
                                                   ({'activation_memory': {'head': 1}}, 'takes features, blocks')])
def test_unknown_settings_are_refused_with_the_known_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        CheckpointedRRDBNet(3, 3, **settings)


@pytest.mark.parametrize('policy', ['lean', 'minimal'])
def test_the_net_can_be_compiled(policy):
    net = CheckpointedRRDBNet(3, 3, 4, 8, 1, 4, activation_memory=policy)
    image = torch.rand(1, 3, 8, 8)
    expected = net(image)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    output = torch.compile(net, backend='aot_eager')(image)
    output.sum().backward()
    assert torch.equal(output, expected)
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(net.parameters(), gradients, strict=True))


def _one_of_two(rank, folder):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    torch.manual_seed(0)
    net = CheckpointedRRDBNet(3, 3, 4, 8, 2, 4, activation_memory='compact' if rank else 'lean').double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    parallel = nn.parallel.DistributedDataParallel(net)
    parallel(images[rank:rank + 1]).square().mean().backward()
    if rank == 0:
        alone = copy.deepcopy(net)
        alone.zero_grad()
        alone(images).square().mean().backward()
        for p, q in zip(net.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-14)
    # DDP's reducer must not be the last that knows the group: torch would then end gloo's threads while it holds the lock of
    # the interpreter that they wait for.
    del parallel
    gc.collect()
    torch.distributed.destroy_process_group()


def test_ddp_averages_the_gradients_of_the_lean_net(tmp_path):
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
