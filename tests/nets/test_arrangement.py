"""Weights lie as is fastest on their device, features follow them, and little is copied from one layout to the other."""
import pytest
import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN, VGGStyleDiscriminator
from basicsr.archs.rrdbnet_arch import RRDBNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sr_bigbatch.nets.arrangement import arrange, memory_format
from sr_bigbatch.nets.rrdb import POLICIES, CheckpointedRRDBNet
from sr_bigbatch.nets.vgg_discriminator import NORMS, GrowableVGGDiscriminator
from sr_bigbatch.nets.vgg_growth import grow

CPU, CUDA = torch.device('cpu'), torch.device('cuda')
ALWAYS = {'ours': lambda: CheckpointedRRDBNet(3, 3, 4, 8, 1, 4), 'of a subclass': lambda: type('Sub', (RRDBNet,), {})(3, 3),
          'BasicSR': lambda: RRDBNet(3, 3, num_feat=8, num_block=1)}
ON_CUDA = {'VGG style': lambda: GrowableVGGDiscriminator(3, 8, 32, 'group'), 'U-Net': lambda: UNetDiscriminatorSN(3, 8)}
NEVER = {'calls view': lambda: VGGStyleDiscriminator(3, 8), 'unknown': lambda: nn.Sequential(nn.Conv2d(3, 3, 3))}


@pytest.mark.parametrize(('make', 'on_cpu', 'on_cuda'), [*((make, True, True) for make in ALWAYS.values()),
                                                         *((make, False, True) for make in ON_CUDA.values()),
                                                         *((make, False, False) for make in NEVER.values())])
def test_the_layout_is_chosen_by_device_for_networks_that_are_known(make, on_cpu, on_cuda):
    net = make()
    for device, channels_last in ((CPU, on_cpu), (CUDA, on_cuda)):
        assert memory_format(net, device) is (torch.channels_last if channels_last else torch.preserve_format)
    arrange(net, None, nn.Flatten())
    largest = max(net.parameters(), key=torch.Tensor.numel) if on_cpu else next(net.parameters())
    assert largest.is_contiguous() is not on_cpu


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('way', ['append', 'prepend'])
def test_a_discriminator_in_channels_last_computes_the_same_and_grows_in_channels_last(norm, way):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = GrowableVGGDiscriminator(3, 8, 64, norm).double().to(memory_format=layout)
        images = torch.rand(3, 3, 128, 128, dtype=torch.float64, generator=torch.manual_seed(1)).requires_grad_()
        grow(net, way, images.detach())
        assert all(weight.is_contiguous(memory_format=layout) for weight in net.parameters() if weight.dim() == 4)
        logits = net(images)
        results.append([logits, *torch.autograd.grad(logits.sum(), [images, *net.parameters()], allow_unused=True)])
    for one, other in zip(*results, strict=True):
        assert one is other or torch.allclose(one, other, rtol=1e-9, atol=1e-11)


class _LayoutCopies(TorchDispatchMode):
    """Counts copies to another layout: those that are asked for, and those that a convolution makes of what it is given."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        tensors = [value for value in args[:2] if isinstance(value, torch.Tensor) and value.dim() == 4]
        features = [value for value in tensors if value.shape[1] > 3]
        if name == 'clone' and features:
            self.count += 1
        elif name in ('convolution', 'convolution_backward'):
            self.count += sum(not value.is_contiguous(memory_format=torch.channels_last) for value in features)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('policy', POLICIES)
def test_features_of_the_generator_are_not_copied_to_another_layout(policy, dtype):
    net = CheckpointedRRDBNet(3, 3, 4, 8, 2, 4, policy)
    arrange(net)
    with _LayoutCopies() as copies:
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=dtype is torch.bfloat16, cache_enabled=False):
            images = net(torch.rand(2, 3, 8, 8))
        images.float().square().mean().backward()
    prefixes = 0 if policy == 'compact' else 2 * 3 * 4  # kept as a part of what a dense block keeps once
    assert copies.count <= prefixes
