# Trains the MobileNetV2 of the demo: see README.md beside this file.
_base_ = [
    '../_base_/models/mobilenet_v2_narrow.py',
    '../_base_/datasets/fashion_mnist.py',
    '../_base_/default_runtime.py',
]
train_cfg = dict(by_epoch=True, max_epochs=16, val_interval=4)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(
        type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=400, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        T_max=16,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
