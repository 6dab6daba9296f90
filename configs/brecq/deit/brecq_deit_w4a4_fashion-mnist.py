_base_ = ['./brecq_deit_fashion-mnist.py', '../../_base_/bits/w4a4.py']
model = dict(quantization=_base_.pop('bits'))
