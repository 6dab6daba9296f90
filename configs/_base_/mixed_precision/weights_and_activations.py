_base_ = './default.py'
mixed_precision = dict(kinds=['weight', 'activation'])
