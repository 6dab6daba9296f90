_base_ = ['./brecq_deit_fashion-mnist.py', '../../_base_/bits/w3a3.py']
model = dict(quantization=_base_.pop('bits'))
