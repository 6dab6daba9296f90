# Fashion-MNIST at 64 x 64 pixels: the whole training set, and the test set.
_base_ = ['./fashion_mnist_demo.py', './fashion_mnist_train.py']

val_dataloader = dict(
    _base_.test_dataloader,
    dataset=dict(_base_.test_dataloader.dataset, data_root=_base_.data_root),
)
val_evaluator = _base_.test_evaluator
test_dataloader = val_dataloader
