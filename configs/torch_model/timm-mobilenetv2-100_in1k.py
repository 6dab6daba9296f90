# MobileNetV2 of timm: `pip install timm`. Another name makes any other model
# of it; mean, std and size are in its `pretrained_cfg`.
_base_ = '../_base_/datasets/imagenet.py'
model = dict(
    type='mmrazor_brecq.TorchModel',
    network=dict(type='timm.create_model', model_name='mobilenetv2_100'),
)
