# Trains the RetinaNet of the demo, on a set that demo/compose_detection.py
# composes: see docs/guides/detection.md.
_base_ = ['../_base_/fashion_detection.py']
default_scope = 'mmdet'
classes = (
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
width, neck = 24, 48
norm = dict(type='BN')
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[60.0, 60.0, 60.0],
        std=[50.0, 50.0, 50.0],
        bgr_to_rgb=False,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=width,
        stem_channels=width,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),
        frozen_stages=-1,
        norm_cfg=norm,
        norm_eval=False,
        style='pytorch',
        zero_init_residual=False,
    ),
    neck=dict(
        type='FPN',
        in_channels=[width * 2, width * 4],
        out_channels=neck,
        num_outs=2,
        norm_cfg=norm,
    ),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=10,
        in_channels=neck,
        feat_channels=neck,
        stacked_convs=2,
        norm_cfg=norm,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=2,
            scales_per_octave=2,
            ratios=[0.7, 1.0, 1.4],
            strides=[8, 16],
        ),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0] * 4,
            target_stds=[1.0] * 4,
        ),
        loss_cls=dict(
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=1.0,
        ),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        reg_decoded_bbox=True,
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.4,
            min_pos_iou=0,
            ignore_iof_thr=-1,
        ),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=300,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=20,
    ),
)

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
    ),
]
test_pipeline = [
    pipeline[0],
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    *pipeline[1:],
]
train_dataloader = dict(
    dataset=dict(
        type='CocoDataset',
        data_root=_base_.data_root,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=classes),
        pipeline=pipeline,
    ),
)
test_dataloader = dict(
    dataset=dict(
        type='CocoDataset',
        data_root=_base_.data_root,
        ann_file='test.json',
        data_prefix=dict(img='test/'),
        metainfo=dict(classes=classes),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_dataloader = dict(_base_.test_dataloader, **test_dataloader)
test_evaluator = dict(
    type='CocoMetric', ann_file=_base_.data_root + 'test.json', metric='bbox'
)
val_evaluator = test_evaluator

train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=10)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=100, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        T_max=10,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends)
