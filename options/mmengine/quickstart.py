"""A small ESRGAN on the photographs inside scikit-image, in mmengine's Runner: crops of 32 px, then of 64 px.

python tools/prepare_data.py --bundled --out datasets/bundled
python tools/train_mmengine.py options/mmengine/quickstart.py
"""
custom_imports = dict(imports=['sr_bigbatch'], allow_failed_imports=False)
default_scope = 'mmengine'

_data = dict(scale=4, io_backend=dict(type='disk'))
train_dataloader = dict(
    batch_size=32,  # the effective batch of a process: one iteration is one update of each network
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ProgressivePairedImageDataset',
        opt=dict(phase='train', gt_size=32, use_hflip=True, use_rot=True, dataroot_gt='datasets/bundled/train_gt',
                 dataroot_lq='datasets/bundled/train_lq', **_data)))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ProgressivePairedImageDataset',
                 opt=dict(phase='val', dataroot_gt='datasets/bundled/val_gt', dataroot_lq='datasets/bundled/val_lq',
                          **_data)))
val_evaluator = dict(type='PSNRMetric', crop_border=4)

model = dict(
    type='AccumulatingESRGAN',
    net_g=dict(type='CheckpointedRRDBNet', num_in_ch=3, num_out_ch=3, num_feat=32, num_block=2, num_grow_ch=32),
    net_d=dict(type='GrowableVGGDiscriminator', num_feat=16, input_size=32, norm='group'),
    pixel_loss=dict(type='L1Loss', loss_weight=1.0),
    gan_loss=dict(type='GANLoss', gan_type='vanilla', loss_weight=1e-3),
    micro_batch_size=8,
    kept_graphs=32,  # small network: no forward pass is made twice
    ema_decay=0.9)

_adam = dict(type='Adam', betas=(0.9, 0.99))
optim_wrapper = dict(
    constructor='OptimWrapperPerNetwork',  # of OverflowSafeOptimWrapper
    net_g=dict(dtype='float32', optimizer=dict(lr=1e-3, **_adam)),
    net_d=dict(dtype='float32', optimizer=dict(lr=1e-4, **_adam)))
_schedule = dict(type='MultiStepLR', by_epoch=False, milestones=[400, 500, 570], gamma=0.5)
param_scheduler = dict(net_g=[_schedule], net_d=[_schedule])
model_wrapper_cfg = dict(type='GradientsBelongToTheStep')  # in place of DistributedDataParallel

custom_hooks = [
    dict(type='ProgressiveResolutionHook', stages=[dict(gt_size=32, until=400), dict(gt_size=64)], growth='prepend',
         fade_iters=50)
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', interval=200, by_epoch=False))
train_cfg = dict(by_epoch=False, max_iters=600, val_interval=50)
val_cfg = dict()
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
work_dir = 'experiments/mmengine_quickstart'
