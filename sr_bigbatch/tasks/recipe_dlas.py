"""Reads a recipe of DL-Art-School for an ESRGAN and writes the same training as options of ours.

Such a recipe names networks, and steps with injectors (what is computed) and losses (what is learned from it).
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sr_bigbatch.options import OptionError
from sr_bigbatch.step.words import count
from sr_bigbatch.tasks.recipe import Change, Recipe, in_line, translate

_Section = Mapping[str, Any]
_NORMS = {'discriminator_vgg_128': 'batch', 'discriminator_vgg_128_gn': 'group',
          'discriminator_vgg_128_gn_checkpointed': 'group'}
_PIXEL = {'l1': 'L1Loss', 'l2': 'MSELoss'}
_RELATIVISTIC = {'ragan': True, 'gan': False}
_LOSSES = {'pix': 'pixel loss', 'feature': 'perceptual loss', 'generator_gan': 'GAN loss of the generator',
           'discriminator_gan': 'GAN loss of the discriminator'}


def is_dlas(opt: _Section) -> bool:
    """Whether options are a recipe of DL-Art-School."""
    return isinstance(opt.get('steps'), dict) and isinstance(opt.get('networks'), dict)


def from_dlas(opt: _Section, batch: int | None = None, lr_rule: str = 'same') -> Recipe:
    """The options of ours that train what a recipe trains.

    Args:
        opt: with one generator of type RRDBNet and at most one discriminator of type discriminator_vgg_128.
        batch: the effective batch that is wanted, in images; None for that of the recipe.
        lr_rule: see :func:`sr_bigbatch.tasks.recipe.translate`.

    Raises:
        OptionError: for a recipe with other networks, losses or keys that are missing.
    """
    try:
        recipe = _Reader(opt).read()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise OptionError([f'this recipe of DL-Art-School cannot be read: {type(error).__name__} {error}']) from None
    if batch is None:
        return recipe
    other = translate(recipe.opt, batch, lr_rule)
    return Recipe(other.opt, [*recipe.changes, *other.changes], recipe.left_out)


class _Reader:
    """Takes a recipe apart, section by section.

    Args:
        opt: the recipe.
    """

    def __init__(self, opt: _Section) -> None:
        self.opt, self.recipe = opt, Recipe({})
        self.generator, self.discriminator = self._network('generator'), self._network('discriminator')
        self.losses = {str(loss['type']): loss for step in opt['steps'].values() for loss in step.get('losses', {}).values()}
        gan = self.losses.get('generator_gan', {})
        self.start = int(gan.get('after') or 0) if self.discriminator else 0
        """The iteration at which the GAN loss begins to count."""

    def _network(self, kind: str) -> tuple[str, _Section] | None:
        found = [(name, net) for name, net in self.opt['networks'].items() if net['type'] == kind]
        if len(found) > 1 or (not found and kind == 'generator'):
            raise OptionError([f'networks: one {kind} is expected, found {", ".join(name for name, _ in found) or "none"}'])
        return found[0] if found else None

    def _set(self, path: str, value: Any, source: str, why: str = 'the same') -> None:
        """Set an option of ours, which a key of the recipe stands for."""
        keys = tuple(path.split('.'))
        self.recipe.change(keys, value, why)
        self.recipe.changes = [*(change for change in self.recipe.changes if change.path != keys),
                               Change(keys, source, in_line(value), why)]

    def read(self) -> Recipe:
        """Section by section, in the order of our option files."""
        opt = self.opt
        self._set('name', str(opt['name']), 'name')
        self._set('model_type', 'AccumulatingESRGANModel' if self.discriminator else 'AccumulatingSRModel', 'steps',
                  'the update of the undivided batch, from micro-batches')
        self._set('scale', int(opt['scale']), 'scale')
        self._set('num_gpu', max(1, len(opt.get('gpu_ids') or [])), 'gpu_ids', 'one process for each')
        if opt.get('manual_seed') or opt['train'].get('manual_seed'):
            self._set('manual_seed', int(opt.get('manual_seed') or opt['train']['manual_seed']), 'manual_seed')
        self._data()
        self._networks()
        path = opt.get('path') or {}
        name = self.generator[0] if self.generator else ''
        if path.get(f'pretrain_model_{name}'):
            self._set('path.pretrain_network_g', str(path[f'pretrain_model_{name}']), f'path.pretrain_model_{name}')
        self._set('path.strict_load_g', bool(path.get('strict_load', True)), 'path.strict_load')
        self._step_sizes()
        self._losses()
        self._loop()
        self._leave_out()
        return self.recipe

    def _data(self) -> None:
        data = self.opt['datasets']['train']
        gpus, size = self.recipe.opt['num_gpu'], int(data['target_size'])
        patches = {int(injector['patch_size']) for injector in self._injectors('image_patch') if injector.get('in') == 'hq'}
        self._set('datasets.train.name', str(data['name']), 'datasets.train.name')
        self._set('datasets.train.type', 'PairedImageDataset', 'datasets.train.mode')
        for key in ('gt', 'lq'):
            self._set(f'datasets.train.dataroot_{key}', f'datasets/{data["name"]}/train_{key}', 'datasets.train.paths',
                      f'made by tools/prepare_data.py {data["paths"]} --out datasets/{data["name"]}')
        self._set('datasets.train.io_backend', {'type': 'disk'}, 'datasets.train.mode')
        whole = next(iter(patches), size)
        fits = whole & (whole - 1) == 0 or self.discriminator is None
        self._set('datasets.train.gt_size', whole if fits else size, 'image_patch.patch_size' if patches and fits else
                  'datasets.train.target_size', 'the same' if fits else
                  f'the whole tile: crops of {whole} px do not suit a discriminator that halves them to 4 px')
        for key in ('use_hflip', 'use_rot'):
            self._set(f'datasets.train.{key}', True, 'datasets.train', 'as usual; false turns it off')
        self._set('datasets.train.num_worker_per_gpu', int(data.get('n_workers', 1)), 'datasets.train.n_workers')
        self._set('datasets.train.batch_size_per_gpu', int(data['batch_size']) // gpus, 'datasets.train.batch_size',
                  'the effective batch of a process')
        val = self.opt['datasets'].get('val')
        if val:
            self._set('datasets.val.name', str(val.get('name', 'val')), 'datasets.val.name')
            self._set('datasets.val.type', 'PairedImageDataset', 'datasets.val.mode')
            for key in ('gt', 'lq'):
                self._set(f'datasets.val.dataroot_{key}', f'datasets/{data["name"]}/val_{key}', 'datasets.val.dataroot_GT',
                          f'made by the same command with --val {val.get("dataroot_GT")}')
            self._set('datasets.val.io_backend', {'type': 'disk'}, 'datasets.val.mode')

    def _injectors(self, kind: str) -> list[_Section]:
        return [injector for step in self.opt['steps'].values() for injector in (step.get('injectors') or {}).values()
                if injector['type'] == kind]

    def _networks(self) -> None:
        name, net = self.generator or ('', {})
        if net['which_model_G'] != 'RRDBNet' or int(net.get('initial_stride', 1)) != 1:
            raise OptionError([f'networks.{name}: RRDBNet with initial_stride 1 is expected, got {net["which_model_G"]}'])
        where = f'networks.{name}'
        self._set('network_g.type', 'CheckpointedRRDBNet', f'{where}.which_model_G', 'RRDBNet in less memory')
        for ours, theirs, default in (('num_in_ch', 'in_nc', 3), ('num_out_ch', 'out_nc', 3), ('num_feat', 'nf', 64),
                                      ('num_block', 'nb', 23), ('num_grow_ch', 'gc', 32)):
            self._set(f'network_g.{ours}', int(net.get(theirs, default)), f'{where}.{theirs}')
        blocks = int(net.get('blocks_per_checkpoint', 1))
        memory: Any = ('minimal' if blocks == 1 else {'blocks': blocks}) if self.opt.get('checkpointing_enabled') else 'lean'
        self._set('network_g.activation_memory', memory, 'checkpointing_enabled', 'auto chooses by itself')
        if int(net.get('scale', self.opt['scale'])) != 4:
            self._set('network_g.scale', int(net['scale']), f'{where}.scale')
        if self.discriminator:
            name, net = self.discriminator
            kind, where = net['which_model_D'], f'networks.{name}'
            if kind not in _NORMS:
                raise OptionError([f'{where}.which_model_D is {kind}; {", ".join(_NORMS)} can be read'])
            self._set('network_d.type', 'GrowableVGGDiscriminator', f'{where}.which_model_D', 'the same layers')
            self._set('network_d.num_in_ch', int(net.get('in_nc', 3)), f'{where}.in_nc')
            self._set('network_d.num_feat', int(net.get('nf', 64)), f'{where}.nf')
            self._set('network_d.input_size', self.recipe.opt['datasets']['train']['gt_size'], f'{where}.image_size',
                      'width of the crops')
            self._set('network_d.norm', _NORMS[kind], f'{where}.which_model_D')

    def _step_sizes(self) -> None:
        parts, data = int(self.opt['train'].get('mega_batch_factor') or 1), self.recipe.opt['datasets']['train']
        self._set('train.micro_batch_size', math.ceil(data['batch_size_per_gpu'] / parts), 'train.mega_batch_factor',
                  f'the batch in {count(parts, "part")}')
        self._set('train.accumulation', 'exact', 'train.mega_batch_factor', 'means over the whole batch; plain takes those '
                  'of each part, as DL-Art-School does')
        self._set('train.optim_wrapper', {'type': 'OverflowSafeOptimWrapper',
                                          'dtype': 'float16' if self.opt.get('fp16') else 'float32'}, 'fp16')
        self._set('train.ema_decay', float(self.opt['train'].get('ema_rate', 0.999)) if self.opt['train'].get('ema_enabled')
                  else 0, 'train.ema_enabled', 'average of the generator')
        for ours, network in (('optim_g', self.generator), ('optim_d', self.discriminator)):
            if network is None:
                continue
            name, step = next((name, step) for name, step in self.opt['steps'].items() if step['training'] == network[0])
            if step.get('optimizer', 'adam') != 'adam':
                raise OptionError([f'steps.{name}.optimizer is {step["optimizer"]}; adam can be read'])
            given = step.get('optimizer_params', step)
            self._set(f'train.{ours}', {'type': 'Adam', 'lr': float(given['lr']),
                                        'weight_decay': float(given.get('weight_decay', 0)),
                                        'betas': [float(given.get('beta1', 0.9)), float(given.get('beta2', 0.999))]},
                      f'steps.{name}')

    def _losses(self) -> None:
        pixel, feature, gan = (self.losses.get(kind) for kind in ('pix', 'feature', 'generator_gan'))
        if pixel:
            self._set('train.pixel_opt', {'type': _PIXEL[pixel['criterion']], 'loss_weight': float(pixel['weight']),
                                          'reduction': 'mean'}, 'pix')
        if feature:
            if feature.get('which_model_F', 'vgg') != 'vgg' or feature['criterion'] != 'l1':
                raise OptionError(['a feature loss of vgg with criterion l1 is expected'])
            self._set('train.perceptual_opt', {
                'type': 'PerceptualLoss', 'layer_weights': {'conv5_4': 1}, 'vgg_type': 'vgg19', 'use_input_norm': True,
                'range_norm': False, 'perceptual_weight': float(feature['weight']), 'style_weight': 0, 'criterion': 'l1'},
                'feature')
        if self.discriminator:
            if gan is None or 'discriminator_gan' not in self.losses or gan['gan_type'] not in _RELATIVISTIC:
                raise OptionError(['losses of type generator_gan and discriminator_gan are expected, of gan_type '
                                   f'{" or ".join(_RELATIVISTIC)}'])
            self._set('train.gan_opt', {'type': 'GANLoss', 'gan_type': 'vanilla', 'real_label_val': 1.0,
                                        'fake_label_val': 0.0, 'loss_weight': float(gan['weight'])}, 'generator_gan.weight')
            self._set('train.relativistic_gan', _RELATIVISTIC[gan['gan_type']], 'generator_gan.gan_type')

    def _loop(self) -> None:
        train, logger, late = self.opt['train'], self.opt.get('logger') or {}, self.start
        if train.get('default_lr_scheme', 'MultiStepLR') != 'MultiStepLR':
            raise OptionError([f'train.default_lr_scheme is {train["default_lr_scheme"]}; MultiStepLR can be read'])
        less = f'less the {late} before the GAN loss begins' if late else 'the same'
        steps = [int(step) - late for step in train['gen_lr_steps'] if int(step) > late]
        self._set('train.scheduler', {'type': 'MultiStepLR', 'milestones': steps, 'gamma': float(train['lr_gamma'])},
                  'train.gen_lr_steps', less)
        self._set('train.total_iter', int(train['niter']) - late, 'train.niter', less)
        self._set('train.warmup_iter', int(train.get('warmup_iter', -1)), 'train.warmup_iter')
        if 'val' in self.recipe.opt['datasets']:
            self._set('val', {'val_freq': int(train['val_freq']), 'save_img': False, 'metrics': {
                'psnr': {'type': 'calculate_psnr', 'crop_border': int(self.opt['scale']), 'test_y_channel': False}}},
                'train.val_freq')
        for ours, default in (('print_freq', 100), ('save_checkpoint_freq', 5000)):
            self._set(f'logger.{ours}', int(logger.get(ours, default)), f'logger.{ours}')
        self._set('logger.use_tb_logger', bool(self.opt.get('use_tb_logger', False)), 'use_tb_logger')

    def _leave_out(self) -> None:
        """Name what has no counterpart, so that nothing is lost in silence."""
        out = self.recipe.left_out
        for step_name, step in self.opt['steps'].items():
            for name, loss in (step.get('losses') or {}).items():
                out.update(self._left_of_loss(f'steps.{step_name}.losses.{name}', loss))
            for name, injector in (step.get('injectors') or {}).items():
                if injector['type'] not in ('generator', 'image_patch'):
                    out[f'steps.{step_name}.injectors.{name}'] = f'an injector of type {injector["type"]}'
        if self.start:
            out[f'the first {self.start} iterations'] = (
                'they train without the GAN loss: do them with options/rrdb_psnr_128_bs128.yml, and give the weights as '
                'path.pretrain_network_g')
        if self.discriminator:
            out['order of the steps'] = 'here the generator is updated before the discriminator'

    def _left_of_loss(self, where: str, loss: _Section) -> Iterator[tuple[str, str]]:
        if loss['type'] not in _LOSSES:
            yield where, f'a loss of type {loss["type"]}'
            return
        for key in ('noise', 'gradient_penalty', 'min_loss'):
            if loss.get(key):
                yield f'{where}.{key}', f'the {_LOSSES[loss["type"]]} has no such term here'
        if loss.get('after') and int(loss['after']) != self.start:
            yield f'{where}.after', f'the {_LOSSES[loss["type"]]} counts from the first iteration on'
