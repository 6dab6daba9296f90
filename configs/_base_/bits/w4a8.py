bits = dict(weight=dict(bits=4), activation=dict(bits=8))
