# The default, and then a pass over all units together.
_base_ = './default.py'
schedule = dict(refiner=dict(type='NetworkRefiner', iterations=80))
