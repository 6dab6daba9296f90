# Few iterations in large steps, and fewer images to choose by: what the
# Fisher information has besides its diagonal is less certain.
_base_ = './default.py'
schedule = dict(
    iterations=17,
    rounding_lr=0.35,
    fit_images=128,
    objective=dict(images=128, shrinkage=0.75),
)
