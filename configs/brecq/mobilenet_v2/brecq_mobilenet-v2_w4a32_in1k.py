_base_ = ['./brecq_mobilenet-v2_in1k.py', '../../_base_/bits/w4a32.py']
model = dict(quantization=_base_.pop('bits'))
