_base_ = ['./brecq_mobilenet-v2_in1k.py', '../../_base_/bits/w2a4.py']
model = dict(quantization=_base_.pop('bits'))
