# A DeiT of 96 channels and 6 blocks, for 64 x 64 pixels: 0.7 M parameters.
model = dict(
    _scope_='mmcls',
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(
            embed_dims=96,
            num_layers=6,
            num_heads=3,
            feedforward_channels=384,
        ),
        img_size=64,
        patch_size=8,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=96,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
    ),
)
