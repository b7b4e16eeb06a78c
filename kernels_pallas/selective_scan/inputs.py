"""The inputs as the forms read them."""

from kernels_pallas.forms import Call


def prepare(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, call: Call):
    """(x, dt, a, b, c) in `call.dtype`, zeros at padding: a step of 0 keeps the state as it is."""
    x_BTD, dt_BTD, b_BTN, c_BTN = (
        call.without_padding(x.astype(call.dtype)) for x in (x_BTD, dt_BTD, b_BTN, c_BTN)
    )
    return x_BTD, dt_BTD, a_DN.astype(call.dtype), b_BTN, c_BTN
