# A Swin of 32 channels and three stages, for 64 x 64 pixels: 0.6 M parameters.
model = dict(
    _scope_='mmcls',
    type='ImageClassifier',
    backbone=dict(
        type='SwinTransformer',
        arch=dict(embed_dims=32, depths=[2, 2, 2], num_heads=[1, 2, 4]),
        img_size=64,
        window_size=4,
        drop_path_rate=0.0,
        out_indices=(2,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
    ),
)
