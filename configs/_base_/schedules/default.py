# What each layer of a unit needs; `fast` has less, `best` a last pass, too.
schedule = dict(
    type='BlockReconstructor',
    iterations=85,
    batch_size=64,
    autocast='fastest',
    objective=dict(type='FisherLowRank'),
)
