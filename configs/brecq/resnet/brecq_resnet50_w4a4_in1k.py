_base_ = ['./brecq_resnet50_in1k.py', '../../_base_/bits/w4a4.py']
model = dict(quantization=_base_.pop('bits'))
