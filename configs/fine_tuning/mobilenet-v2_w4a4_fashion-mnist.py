# Fine-tunes the MobileNetV2 of the demo, quantized to W4A4.
_base_ = [
    '../brecq/mobilenet_v2/brecq_mobilenet-v2_w4a4_fashion-mnist.py',
    '../_base_/datasets/fashion_mnist_train.py',
    '../_base_/fine_tuning.py',
]
