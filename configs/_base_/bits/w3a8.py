bits = dict(weight=dict(bits=3), activation=dict(bits=8))
