# The narrow DeiT of the demo, all at 8 bits: the files beside it choose
# others.
_base_ = [
    '../../_base_/models/deit_narrow.py',
    '../../_base_/calibration/fashion_mnist_demo.py',
    '../../_base_/schedules/default.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    _delete_=True,
    type='mmrazor_brecq.BRECQ',
    architecture=_base_.model,
    reconstructor=_base_.pop('schedule'),
)
test_cfg = dict(
    type='mmrazor_brecq.PTQLoop', calibration=_base_.pop('calibration')
)
