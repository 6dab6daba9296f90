# Fine-tunes the ResNet-18 of the demo, quantized to W2A2.
_base_ = [
    '../brecq/resnet/brecq_resnet18_w2a2_fashion-mnist.py',
    '../_base_/datasets/fashion_mnist_train.py',
    '../_base_/fine_tuning.py',
]
