import pytest
import torch
from basicsr.archs.discriminator_arch import VGGStyleDiscriminator

from sr_bigbatch.memory.device import saved_bytes
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
