# Fashion-MNIST at 64 x 64 pixels: the test set, as it lies in demo/.
# MMRAZOR_BRECQ_DEMO names that folder, where this is used from elsewhere.
data_preprocessor = dict(
    num_classes=10,
    mean=[73.0, 73.0, 73.0],
    std=[90.0, 90.0, 90.0],
    to_rgb=False,
)

test_pipeline = [
    dict(type='Resize', scale=64),
    dict(type='PackClsInputs'),
]

test_dataloader = dict(
    batch_size=256,
    num_workers=0,
    sampler=dict(_scope_='mmcls', type='DefaultSampler', shuffle=False),
    dataset=dict(
        _scope_='mmcls',
        type='mmrazor_brecq.IDXDataset',
        data_root='{{$MMRAZOR_BRECQ_DEMO:demo}}/fashion_mnist',
        images='t10k-images-idx3-ubyte.gz',
        labels='t10k-labels-idx1-ubyte.gz',
        metainfo=dict(
            classes=(
                'T-shirt/top',
                'Trouser',
                'Pullover',
                'Dress',
                'Coat',
                'Sandal',
                'Shirt',
                'Sneaker',
                'Bag',
                'Ankle boot',
            )
        ),
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(_scope_='mmcls', type='Accuracy', topk=(1, 5))
