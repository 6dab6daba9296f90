# Trains the DeiT of the demo: see README.md beside this file.
_base_ = [
    '../_base_/models/deit_narrow.py',
    '../_base_/datasets/fashion_mnist.py',
    '../_base_/transformer_training.py',
    '../_base_/default_runtime.py',
]
