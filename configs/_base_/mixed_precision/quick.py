# A quick look: what nearest rounding loses.
_base_ = './default.py'
mixed_precision = dict(reconstructor=dict(type='NearestRounding'))
