# 1,024 of the training images, drawn with a seed of their own. Whoever takes
# this gives the data set its `pipeline`: that of the test images.
calibration = dict(
    num_images=1024,
    dataloader=dict(
        batch_size=64,
        num_workers=4,
        sampler=dict(
            _scope_='mmcls', type='DefaultSampler', shuffle=True, seed=0
        ),
        dataset=dict(
            _scope_='mmcls',
            type='ImageNet',
            data_root='data/imagenet',
            ann_file='meta/train.txt',
            data_prefix='train',
        ),
    ),
)
