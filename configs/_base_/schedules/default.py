# Iterations for each layer of a unit, those side by side counted once; `fast`
# has fewer, `best` adds a pass over the whole network.
schedule = dict(
    type='BlockReconstructor',
    iterations=80,
    batch_size=64,
    autocast='fastest',
    objective=dict(type='FisherLowRank'),
)
