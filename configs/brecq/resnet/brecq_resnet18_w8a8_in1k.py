_base_ = ['./brecq_resnet18_in1k.py', '../../_base_/bits/w8a8.py']
model = dict(quantization=_base_.pop('bits'))
