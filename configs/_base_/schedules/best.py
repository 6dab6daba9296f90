# A long pass over all units together makes the difference, and sees itself how
# errors add up.
_base_ = './default.py'
schedule = dict(
    objective=dict(type='FisherDiag'),
    refiner=dict(type='NetworkRefiner', iterations=1500),
)
