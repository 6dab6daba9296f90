# EfficientNet-Lite2, which looks at 260 x 260 pixels.
_base_ = './efficientnet-lite0_in1k.py'
model = dict(network=dict(model_name='efficientnet-lite2'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=292, edge='short'),
    dict(type='CenterCrop', crop_size=260),
    dict(type='PackClsInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
