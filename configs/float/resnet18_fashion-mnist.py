# Trains the ResNet-18 of the demo: see README.md beside this file.
_base_ = [
    '../_base_/models/resnet18_narrow.py',
    '../_base_/datasets/fashion_mnist.py',
    '../_base_/default_runtime.py',
]
train_cfg = dict(by_epoch=True, max_epochs=18, val_interval=3)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(
        type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=400, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        T_max=18,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
