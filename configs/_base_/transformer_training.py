# Trains a small transformer for ten epochs, in bfloat16 where that helps.
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=5)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=400, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        T_max=10,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
