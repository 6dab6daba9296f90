# Fashion-MNIST at 64 x 64 pixels: the whole training set.
# FASHION_MNIST names the folder with the four .gz files.
data_root = '{{$FASHION_MNIST:data/FashionMNIST/raw}}'

train_pipeline = [
    dict(type='RandomCrop', crop_size=28, padding=2),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='Resize', scale=64),
    dict(type='PackClsInputs'),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    sampler=dict(_scope_='mmcls', type='DefaultSampler', shuffle=True),
    dataset=dict(
        _scope_='mmcls',
        type='mmrazor_brecq.IDXDataset',
        data_root=data_root,
        images='train-images-idx3-ubyte.gz',
        labels='train-labels-idx1-ubyte.gz',
        pipeline=train_pipeline,
    ),
)
