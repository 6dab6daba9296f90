# A MobileViT of two stages with attention, for 64 x 64 pixels: 0.5 M
# parameters.
model = dict(
    _scope_='mmcls',
    type='ImageClassifier',
    backbone=dict(
        type='MobileViT',
        arch=[
            ['mobilenetv2', 16, 1, 1, 2],
            ['mobilenetv2', 24, 2, 2, 2],
            ['mobilevit', 48, 2, 64, 128, 2, 2],
            ['mobilevit', 64, 2, 80, 160, 3, 2],
        ],
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=256,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
    ),
)
