# The slice of training images in demo/, all of it, and the test set.
_base_ = '../datasets/fashion_mnist_demo.py'
calibration = dict(
    num_images=1024,
    dataloader=dict(
        _base_.test_dataloader,
        dataset=dict(
            _base_.test_dataloader.dataset,
            images='calib-images-idx3-ubyte.gz',
            labels='calib-labels-idx1-ubyte.gz',
        ),
    ),
)
