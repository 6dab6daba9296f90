# Weights alone, at widths that all devices have a use for.
mixed_precision = dict(bits=[2, 3, 4, 6, 8], kinds=['weight'])
