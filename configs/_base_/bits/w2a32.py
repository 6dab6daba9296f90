# Weights alone: activations stay in float.
bits = dict(weight=dict(bits=2), activation=None)
