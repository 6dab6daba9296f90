# ResNet-18 with 24 instead of 64 base channels: 1.6 M parameters.
model = dict(
    _scope_='mmcls',
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=24, base_channels=24),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=192,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
