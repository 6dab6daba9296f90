# 200 iterations a unit give most of what 1000 do.
schedule = dict(
    type='BlockReconstructor',
    iterations=200,
    objective=dict(type='FisherDiag'),
)
