# Weights alone: activations stay in float.
bits = dict(weight=dict(bits=4), activation=None)
