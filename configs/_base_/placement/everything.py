# Every convolution and linear layer, the head's too; the first layer and those
# that the outputs come from have 8 bits.
placement = dict(first_last_bits=8)
