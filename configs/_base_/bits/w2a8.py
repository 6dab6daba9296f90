bits = dict(weight=dict(bits=2), activation=dict(bits=8))
