# Trains the DeepLabV3+ of the demo, on the set and the masks that
# demo/compose_detection.py composes: see docs/guides/segmentation.md.
_base_ = ['../_base_/fashion_detection.py']
default_scope = 'mmseg'
classes = (
    'background',
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
)
palette = [[25 * i] * 3 for i in range(len(classes))]
width, channels = 16, 48
norm = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[60.0, 60.0, 60.0],
        std=[50.0, 50.0, 50.0],
        bgr_to_rgb=False,
        size_divisor=32,
        test_cfg=dict(size_divisor=32),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=width,
        stem_channels=width,
        num_stages=3,
        strides=(1, 2, 1),
        dilations=(1, 1, 2),
        out_indices=(0, 2),
        norm_cfg=norm,
    ),
    decode_head=dict(
        type='DepthwiseSeparableASPPHead',
        in_channels=width * 4,
        in_index=1,
        channels=channels,
        dilations=(1, 2, 4),
        c1_in_channels=width,
        c1_channels=channels // 4,
        num_classes=len(classes),
        dropout_ratio=0,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root=_base_.data_root,
    img_suffix='.png',
    metainfo=dict(classes=classes, palette=palette),
    reduce_zero_label=False,
    pipeline=pipeline,
)
train_dataloader = dict(
    dataset=dict(
        dataset,
        data_prefix=dict(img_path='train', seg_map_path='train_masks'),
    ),
)
test_dataloader = dict(
    dataset=dict(
        dataset,
        data_prefix=dict(img_path='test', seg_map_path='test_masks'),
        test_mode=True,
    ),
)
val_dataloader = dict(_base_.test_dataloader, **test_dataloader)
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
val_evaluator = test_evaluator

train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=20)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=100, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        T_max=20,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=10))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends)
