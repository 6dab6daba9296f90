# Few iterations in large steps, and fewer images to choose by.
_base_ = './default.py'
schedule = dict(
    iterations=24,
    batch_size=32,
    rounding_lr=0.35,
    fit_images=128,
    objective=dict(type='FisherDiag', images=128),
)
