"""Real-ESRGAN's options and BasicSR's own models for it, on the CPU and at a reduced size."""
import copy

import torch
from basicsr.models import realesrgan_model, realesrnet_model
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.utils import DiffJPEG, USMSharp
from basicsr.utils.img_process_util import filter2D

from sr_bigbatch.hosts.basicsr.synthesis.degradation import Photographs

HALVES = {'resize_prob': [0.2, 0.7, 0.1], 'resize_range': [0.15, 1.5], 'gaussian_noise_prob': 0.5, 'noise_range': [1, 30],
          'poisson_scale_range': [0.05, 3], 'gray_noise_prob': 0.4, 'jpeg_range': [30, 95], 'second_blur_prob': 0.8,
          'resize_prob2': [0.3, 0.4, 0.3], 'resize_range2': [0.3, 1.2], 'gaussian_noise_prob2': 0.5, 'noise_range2': [1, 25],
          'poisson_scale_range2': [0.05, 2.5], 'gray_noise_prob2': 0.4, 'jpeg_range2': [30, 95]}
"""Of ``train_realesrgan_x4plus.yml``."""
BLUR = {'blur_kernel_size': 21, 'kernel_list': ['iso', 'aniso'], 'kernel_prob': [0.6, 0.4], 'sinc_prob': 0.1,
        'blur_sigma': [0.2, 3], 'betag_range': [0.5, 4], 'betap_range': [1, 2], 'blur_kernel_size2': 21,
        'kernel_list2': ['iso', 'aniso'], 'kernel_prob2': [0.6, 0.4], 'sinc_prob2': 0.1, 'blur_sigma2': [0.2, 1.5],
        'betag_range2': [0.5, 4], 'betap_range2': [1, 2], 'final_sinc_prob': 0.8}
GAN, NET = 'AccumulatingRealESRGANModel', 'AccumulatingRealESRNetModel'
HOSTS = {GAN: RealESRGANModel, NET: RealESRNetModel}


def synthesis_options(model=GAN, **changes):
    """As much of an option file as the making of batches needs."""
    targets = {'gt_usm': True} if model == NET else {'l1_gt_usm': True, 'percep_gt_usm': True, 'gan_gt_usm': False}
    return {'model_type': model, 'scale': 4, 'gt_size': 48, 'manual_seed': 3, **targets, **HALVES, **changes}


def photographs(count, side=80, seed=0):
    """Smooth 8-bit images (count, 3, side, side) and blur kernels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(side, side), mode='bicubic').clamp(0, 1)
    kernels = [torch.rand(count, 21, 21, generator=generator) ** 8 for _ in range(3)]
    return Photographs((images * 255).round() / 255, *(kernel / kernel.sum((1, 2), keepdim=True) for kernel in kernels))


class _HostOnCpu:
    """BasicSR's own model, as far as it makes batches; it calls ``.cuda()`` where it keeps its pool."""

    def __init__(self, opt):
        self.opt, self.device, self.is_train = {'queue_size': 180, **opt}, torch.device('cpu'), True
        self.jpeger, self.usm_sharpener = DiffJPEG(differentiable=False), USMSharp()
        self.queue_size = self.opt['queue_size']


def host_of(opt, monkeypatch):
    """BasicSR's own class, whose ``.cuda()`` does nothing, and whose filter takes what its JPEG leaves on a CPU."""
    monkeypatch.setattr(torch.Tensor, 'cuda', lambda tensor, *_: tensor)
    for module in (realesrgan_model, realesrnet_model):
        monkeypatch.setattr(module, 'filter2D', lambda images, kernel: filter2D(images.contiguous(), kernel))
    return type('OnCpu', (_HostOnCpu, HOSTS[opt['model_type']]), {'__init__': _HostOnCpu.__init__})(copy.deepcopy(opt))


def fed(host, images):
    """Low-resolution images and ground truth that BasicSR's model makes of photographs."""
    host.feed_data(images._asdict())
    return host.lq, host.gt


