# As QDrop (Wei et al., 2022) quantizes detectors with an FPN: backbone and
# neck alone, the first layer with 8 bits; heads and the output convolutions of
# the FPN stay in float.
placement = dict(
    first_last_bits=8,
    bit_overrides={'*head.*': None, 'neck.fpn_convs.*': None},
)
