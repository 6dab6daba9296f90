# Longer for each unit, and then a pass over all of them together.
_base_ = './default.py'
schedule = dict(
    iterations=160, refiner=dict(type='NetworkRefiner', iterations=1500)
)
