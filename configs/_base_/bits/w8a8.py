# Symmetric weights: at 8 bits a zero point gains nothing, and runtimes are
# slow with it.
bits = dict(weight=dict(bits=8, symmetric=True), activation=dict(bits=8))
