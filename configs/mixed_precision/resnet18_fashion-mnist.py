# Where tools/search_bits.py begins: 4 bits, and what may be chosen instead.
_base_ = [
    '../brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py',
    '../_base_/mixed_precision/weights_and_activations.py',
]
