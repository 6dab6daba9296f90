# RegNetX-600MF, which mmcls has no config of: w0 to depth as in the paper.
_base_ = 'mmcls::regnet/regnetx-400mf_8xb128_in1k.py'
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            w0=48,
            wa=36.97,
            wm=2.24,
            group_w=24,
            depth=16,
            bot_mul=1.0,
        )
    ),
    head=dict(in_channels=528),
)
