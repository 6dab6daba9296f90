# What each layer of a unit needs; `fast` has less, `best` a last pass, too.
schedule = dict(
    type='BlockReconstructor',
    iterations=80,
    batch_size=64,
    rounding_lr=0.3,
    autocast='fastest',
    objective=dict(type='FisherLowRank'),
)
