# ResNet-18 on ImageNet, whole: what a config of a quantization says. Other
# models take one command and no config, `tools/ptq.py FLOAT --recipe w4a4`.
_base_ = [
    'mmcls::resnet/resnet18_8xb32_in1k.py',
    '../../_base_/bits/w4a4.py',
    '../../_base_/calibration/imagenet.py',
    '../../_base_/schedules/default.py',
]
custom_imports = dict(imports=['mmrazor_brecq'], allow_failed_imports=False)
randomness = dict(seed=0)

model = dict(
    _delete_=True,
    type='mmrazor_brecq.BRECQ',
    architecture=_base_.model,
    quantization=_base_.pop('bits'),
    reconstructor=_base_.pop('schedule'),
)
# Calibration images are transformed as test images are.
_base_.calibration.dataloader.dataset.pipeline = _base_.test_pipeline
test_cfg = dict(
    type='mmrazor_brecq.PTQLoop', calibration=_base_.pop('calibration')
)

# Nothing is trained.
train_cfg = train_dataloader = train_pipeline = None
optim_wrapper = param_scheduler = auto_scale_lr = None
val_cfg = val_dataloader = val_evaluator = None
