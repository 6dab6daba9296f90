# Fashion-MNIST at 64 x 64 pixels: the whole training set, and the test set.
# FASHION_MNIST names the folder with the four .gz files.
data_root = '{{$FASHION_MNIST:data/FashionMNIST/raw}}'
metainfo = dict(classes=('T-shirt/top', 'Trouser', 'Pullover', 'Dress',
                         'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag',
                         'Ankle boot'))
data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=10,
    mean=[73.0, 73.0, 73.0],
    std=[90.0, 90.0, 90.0],
    to_rgb=False)

train_pipeline = [
    dict(type='RandomCrop', crop_size=28, padding=2),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='Resize', scale=64),
    dict(type='PackClsInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=64),
    dict(type='PackClsInputs'),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmrazor_brecq.IDXDataset',
        data_root=data_root,
        images='train-images-idx3-ubyte.gz',
        labels='train-labels-idx1-ubyte.gz',
        metainfo=metainfo,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmrazor_brecq.IDXDataset',
        data_root=data_root,
        images='t10k-images-idx3-ubyte.gz',
        labels='t10k-labels-idx1-ubyte.gz',
        metainfo=metainfo,
        pipeline=test_pipeline))
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
