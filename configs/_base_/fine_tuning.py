# Training of quantized weights and scales. Weights learn in units of their
# scale; the other rates are multiples of `lr`.
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='Adam', lr=1e-3),
    paramwise_cfg=dict(
        custom_keys={
            'rounding.position': dict(lr_mult=1.0),
            'weight_quantizer.log_scale': dict(lr_mult=4.0),
            'log_scale': dict(lr_mult=0.5),
            'bias': dict(lr_mult=0.1),
        }
    ),
)
param_scheduler = dict(
    type='CosineAnnealingLR',
    T_max=train_cfg['max_epochs'],
    by_epoch=True,
    convert_to_iter_based=True,
)
