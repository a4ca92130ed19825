import pytest
import torch
from basicsr.archs.discriminator_arch import VGGStyleDiscriminator
from torch.nn import functional as F

from sr_bigbatch.memory.autocast_rules import autocast_as_on
from sr_bigbatch.memory.device import saved_bytes
from sr_bigbatch.memory.live_bytes import Flops, LiveBytes
from sr_bigbatch.nets.vgg_discriminator import NORMS, GrowableVGGDiscriminator


@pytest.mark.parametrize('size', [128, 256])
def test_weights_of_basicsr_load_strictly_and_judge_the_same(size):
    host, ours = VGGStyleDiscriminator(3, 8, size), GrowableVGGDiscriminator(3, 8, size, 'batch')
    ours.load_state_dict(host.state_dict(), strict=True)
    images = torch.rand(3, 3, size, size)
    assert torch.equal(ours(images), host(images))
    assert torch.equal(ours.eval()(images), host.eval()(images))
    host.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize('mode', ['train', 'frozen', 'eval'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_and_running_statistics_are_bitwise_those_of_basicsr(mode, dtype):
    wide = torch.float32 if dtype is torch.bfloat16 else dtype
    host, ours = VGGStyleDiscriminator(3, 8, 128).to(wide), GrowableVGGDiscriminator(3, 8, 128, 'batch').to(wide)
    ours.load_state_dict(host.state_dict())
    images, results = torch.rand(4, 3, 128, 128, dtype=wide), []
    for net in (host, ours):
        if mode == 'frozen':
            for module in net.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
        x = images.clone().requires_grad_()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            logits = net.train(mode == 'train')(x) if mode != 'frozen' else net(x)
        gradient, = torch.autograd.grad(logits, x, torch.ones_like(logits), retain_graph=True)  # twice, as in a step
        logits.square().sum().backward()
        results.append([logits, gradient, x.grad, *(p.grad for p in net.parameters()), *net.buffers()])
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)


def test_batch_norm_keeps_less_than_half_of_basicsrs_bytes():
    host, ours = VGGStyleDiscriminator(3, 8, 128), GrowableVGGDiscriminator(3, 8, 128, 'batch')
    images = torch.rand(2, 3, 128, 128)
    assert saved_bytes(lambda: ours(images), ours) < 0.45 * saved_bytes(lambda: host(images), host)


def _layer_by_layer(net, images):
    """Logits of a discriminator with ``norm: group`` as its layers say it, nothing computed again."""
    features = F.leaky_relu(net.conv0_0(images), 0.2)
    for name in [f'{stage}_{part}' for stage in range(net.stages) for part in range(2)][1:]:
        features = F.leaky_relu(getattr(net, f'gn{name}')(net.get_submodule(f'conv{name}')(features)), 0.2)
    return net.linear2(F.leaky_relu(net.linear1(features.flatten(1)), 0.2))


@pytest.mark.parametrize('kind', ['cpu', 'cuda'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_group_norm_computed_again_gives_the_bits_of_the_layers_without_a_convolution_more(dtype, kind):
    net, images = GrowableVGGDiscriminator(3, 8, 64, 'group'), torch.rand(2, 3, 64, 64)
    results = []
    for run in (net, lambda x: _layer_by_layer(net, x)):
        x = images.clone().requires_grad_()
        with autocast_as_on(kind), Flops() as flops:
            with torch.autocast('cpu', dtype=dtype, enabled=dtype is not torch.float32, cache_enabled=False):
                logits = run(x)
            gradient, = torch.autograd.grad(logits, x, torch.ones_like(logits), retain_graph=True)  # twice, as in a step
            logits.square().sum().backward()
        results.append([logits, gradient, x.grad, *(p.grad for p in net.parameters()), torch.tensor(flops.total)])
        net.zero_grad()
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(('kind', 'share'), [('cpu', 0.7), ('cuda', 0.4)])
def test_group_norm_keeps_only_what_goes_into_it(kind, share):
    net, images, kept = GrowableVGGDiscriminator(3, 8, 128, 'group'), torch.rand(2, 3, 128, 128), []
    for run in (net, lambda x: _layer_by_layer(net, x)):
        with autocast_as_on(kind), torch.autocast('cpu', torch.bfloat16, cache_enabled=False), LiveBytes() as live:
            logits = run(images)
        kept.append(live.now)
        del logits
    assert kept[0] < share * kept[1]


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('size', [32, 64, 512])
def test_any_size_and_norm_judges_whole_images(size, norm):
    assert GrowableVGGDiscriminator(3, 8, size, norm)(torch.rand(2, 3, size, size)).shape == (2, 1)


@pytest.mark.parametrize('size', [0, 16, 48, 2048, 128.0, '128'])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match='power of two'):
        GrowableVGGDiscriminator(3, 8, size)


def test_unknown_norm_and_wrong_image_are_refused():
    with pytest.raises(ValueError, match='norm must be one of'):
        GrowableVGGDiscriminator(norm='layer')
    with pytest.raises(ValueError, match='judges 32x32 images, got 64x64'):
        GrowableVGGDiscriminator(3, 8, 32)(torch.rand(1, 3, 64, 64))
