# A device that knows 4 and 8 bits, and adds only what has the same width: the
# layers whose outputs a residual adds share theirs, stage by stage.
_base_ = [
    '../brecq/mobilenet_v2/brecq_mobilenet-v2_w4a4_fashion-mnist.py',
    '../_base_/mixed_precision/quick.py',
]
mixed_precision = dict(
    bits=[4, 8],
    allowed={'backbone.conv2.conv': 8},
    shared=[[f'backbone.layer{stage}.*.conv.2.conv'] for stage in range(2, 7)],
)
