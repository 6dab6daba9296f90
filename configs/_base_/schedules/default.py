# Five times these iterations bring little more.
schedule = dict(
    type='BlockReconstructor',
    iterations=240,
    objective=dict(type='FisherDiag'),
)
