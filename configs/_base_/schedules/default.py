# The reference for what each layer of a unit needs; `best` has more, `fast`
# less.
schedule = dict(
    type='BlockReconstructor',
    iterations=110,
    autocast='fastest',
    objective=dict(type='FisherDiag'),
)
