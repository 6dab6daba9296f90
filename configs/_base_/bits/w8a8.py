bits = dict(weight=dict(bits=8), activation=dict(bits=8))
