import copy

import pytest
import torch
from basicsr.archs.discriminator_arch import VGGStyleDiscriminator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sr_bigbatch.nets.vgg_discriminator import NORMS, GrowableVGGDiscriminator
from sr_bigbatch.nets.vgg_growth import WAYS, grow, grown_parameters, shape_of


def test_one_that_grew_by_append_has_the_keys_of_basicsrs_larger_one_and_keeps_its_weights():
    net = GrowableVGGDiscriminator(3, 8, 128, 'batch')
    kept = {key: value.clone() for key, value in net.state_dict().items()}
    new = grow(net, 'append', torch.rand(4, 3, 256, 256))
    assert len(new) == 6  # two convolutions without bias, two BatchNorms
    host = VGGStyleDiscriminator(3, 8, 256)
    host.load_state_dict(net.state_dict(), strict=True)
    images = torch.rand(2, 3, 256, 256)
    assert torch.equal(host.eval()(images), net.eval()(images))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in kept.items())


@pytest.mark.parametrize('norm', NORMS)
def test_an_appended_stage_passes_on_what_it_is_given(norm):
    torch.manual_seed(0)
    net, images = GrowableVGGDiscriminator(3, 8, 64, norm), torch.rand(6, 3, 128, 128)
    net(torch.rand(6, 3, 64, 64))
    before = net.eval().features(images)
    wanted = before[..., ::2, ::2] if norm == 'spectral' else F.avg_pool2d(before, 2)
    grow(net, 'append', images)
    after = net.features(images)
    assert torch.corrcoef(torch.stack([after.flatten(), wanted.flatten()]))[0, 1] > 0.9
    assert not net.training


@pytest.mark.parametrize('norm', NORMS)
def test_a_prepended_stage_changes_nothing_at_first_and_everything_later(norm):
    net, images = GrowableVGGDiscriminator(3, 8, 32, norm).eval(), torch.rand(3, 3, 128, 128)
    for size in (64, 128):
        halved = F.interpolate(images, size // 2, mode='area')
        before, new = net(halved), grow(net, 'prepend')
        assert len(new) == 4 and net.input_size == size
        grown = net(F.interpolate(images, size, mode='area'))
        torch.testing.assert_close(grown, before)
        net.set_fade(1.0)
        assert not torch.allclose(net(F.interpolate(images, size, mode='area')), before)
    net(images).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in new)


@given(norm=st.sampled_from(NORMS), ways=st.lists(st.sampled_from(['append', 'prepend']), max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_grown_one_can_be_built_from_its_state_and_knows_what_it_added(norm, ways):
    net = GrowableVGGDiscriminator(3, 8, 64, norm)
    added = [grow(net, way) for way in ways]
    assert shape_of(net.state_dict()) == (net.stages, net.prepended) == (4 + ways.count('append'), ways.count('prepend'))
    for mine, known in zip(grown_parameters(net, ways), added, strict=True):
        assert [id(parameter) for parameter in mine] == [id(parameter) for parameter in known]
    twin = GrowableVGGDiscriminator(3, 8, net.input_size, norm, net.prepended)
    twin.load_state_dict(net.state_dict(), strict=True)
    images = torch.rand(2, 3, net.input_size, net.input_size)
    assert torch.equal(twin.eval()(images), copy.deepcopy(net).eval()(images))


@pytest.mark.parametrize('where', [{'device': 'meta'}, {'dtype': torch.float64},
                                   {'device': 'meta', 'dtype': torch.bfloat16}])
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('norm', NORMS)
def test_what_is_added_is_where_the_network_is_and_of_its_dtype(norm, way, where):
    net = GrowableVGGDiscriminator(3, 8, 64, norm).to(**where)
    for _ in range(2):
        grow(net, way)
    first = net.linear1.weight
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        assert tensor.device == first.device, name
        assert tensor.dtype == first.dtype or not tensor.is_floating_point(), name


def test_what_cannot_grow_says_why():
    with pytest.raises(ValueError, match='start at 64 px or more, or use growth: prepend'):
        grow(GrowableVGGDiscriminator(3, 8, 32))
    with pytest.raises(ValueError, match='growth must be one of append, prepend'):
        grow(GrowableVGGDiscriminator(3, 8, 64), 'insert')
    with pytest.raises(ValueError, match='power of two'):
        grow(GrowableVGGDiscriminator(3, 8, 1024))
    with pytest.raises(ValueError, match='power of two'):
        GrowableVGGDiscriminator(3, 8, 32, prepended=1)
