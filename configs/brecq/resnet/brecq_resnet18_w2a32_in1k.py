_base_ = ['./brecq_resnet18_in1k.py', '../../_base_/bits/w2a32.py']
model = dict(quantization=_base_.pop('bits'))
