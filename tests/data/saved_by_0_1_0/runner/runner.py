_adam = dict(
    betas=(
        0.9,
        0.99,
    ), type='Adam')
_data = dict(io_backend=dict(type='disk'), scale=4)
_schedule = dict(
    by_epoch=False,
    gamma=0.5,
    milestones=[
        400,
        500,
        570,
    ],
    type='MultiStepLR')
custom_hooks = [
    dict(
        fade_iters=3,
        growth='prepend',
        stages=[
            dict(gt_size=32, until=2),
            dict(gt_size=64),
        ],
        type='ProgressiveResolutionHook'),
]
custom_imports = dict(
    allow_failed_imports=False, imports=[
        'sr_bigbatch',
    ])
default_hooks = dict(
    checkpoint=dict(
        by_epoch=False, interval=3, out_dir='saved', type='CheckpointHook'),
    logger=dict(interval=1, log_metric_by_epoch=False, type='LoggerHook'))
default_scope = 'mmengine'
launcher = 'none'
log_processor = dict(by_epoch=False)
model = dict(
    ema_decay=0.9,
    gan_loss=dict(gan_type='vanilla', loss_weight=0.001, type='GANLoss'),
    kept_graphs=32,
    micro_batch_size=2,
    net_d=dict(
        input_size=32,
        norm='none',
        num_feat=1,
        type='GrowableVGGDiscriminator'),
    net_g=dict(
        num_block=1,
        num_feat=4,
        num_grow_ch=2,
        num_in_ch=3,
        num_out_ch=3,
        type='CheckpointedRRDBNet'),
    pixel_loss=dict(loss_weight=1.0, type='L1Loss'),
    type='AccumulatingESRGAN')
model_wrapper_cfg = dict(type='GradientsBelongToTheStep')
optim_wrapper = dict(
    constructor='OptimWrapperPerNetwork',
    net_d=dict(
        dtype='float16',
        loss_scale=dict(growth_interval=2, init_scale=4096.0),
        optimizer=dict(betas=(
            0.9,
            0.99,
        ), lr=0.0001, type='Adam')),
    net_g=dict(
        dtype='float16',
        loss_scale=dict(growth_interval=2, init_scale=16384.0),
        optimizer=dict(betas=(
            0.9,
            0.99,
        ), lr=0.0001, type='Adam')))
param_scheduler = dict(
    net_d=[
        dict(
            by_epoch=False, gamma=0.5, milestones=[
                2,
                4,
            ], type='MultiStepLR'),
    ],
    net_g=[
        dict(
            by_epoch=False, gamma=0.5, milestones=[
                2,
                4,
            ], type='MultiStepLR'),
    ])
randomness = dict(seed=0)
resume = False
train_cfg = dict(by_epoch=False, max_iters=5)
train_dataloader = dict(
    batch_size=4,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        opt=dict(
            dataroot_gt='datasets/bundled/train_gt',
            dataroot_lq='datasets/bundled/train_lq',
            gt_size=32,
            io_backend=dict(type='disk'),
            phase='train',
            scale=4,
            use_hflip=True,
            use_rot=True),
        type='ProgressivePairedImageDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=True, type='InfiniteSampler'))
work_dir = 'saved/runner'
