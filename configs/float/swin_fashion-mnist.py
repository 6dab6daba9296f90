# Trains the Swin of the demo: see README.md beside this file.
_base_ = [
    '../_base_/models/swin_narrow.py',
    '../_base_/datasets/fashion_mnist.py',
    '../_base_/transformer_training.py',
    '../_base_/default_runtime.py',
]
