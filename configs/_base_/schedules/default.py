# The reference for what a unit needs; `best` has more, `fast` less.
schedule = dict(
    type='BlockReconstructor',
    iterations=240,
    objective=dict(type='FisherDiag'),
)
