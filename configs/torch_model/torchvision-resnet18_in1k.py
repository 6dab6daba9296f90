# ResNet-18 of torchvision, with the weights as torchvision publishes them.
_base_ = '../_base_/datasets/imagenet.py'
model = dict(
    type='mmrazor_brecq.TorchModel',
    network=dict(type='torchvision.models.resnet18'),
)
