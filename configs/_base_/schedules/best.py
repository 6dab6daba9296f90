# The long last pass over all units together sees how their errors add up.
_base_ = './default.py'
schedule = dict(
    iterations=110,
    batch_size=32,
    objective=dict(type='FisherDiag'),
    refiner=dict(type='NetworkRefiner', iterations=1200),
)
