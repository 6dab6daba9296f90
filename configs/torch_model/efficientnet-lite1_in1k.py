# EfficientNet-Lite1, which looks at 240 x 240 pixels.
_base_ = './efficientnet-lite0_in1k.py'
model = dict(network=dict(model_name='efficientnet-lite1'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=272, edge='short'),
    dict(type='CenterCrop', crop_size=240),
    dict(type='PackClsInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
