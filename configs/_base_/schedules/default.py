# Seconds to a minute a unit: most of what the longest one gives.
schedule = dict(
    type='BlockReconstructor',
    iterations=200,
    objective=dict(type='FisherDiag'),
)
