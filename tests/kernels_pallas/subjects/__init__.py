"""The ops of kernels_pallas as subjects of the laws, one module per op.

Each module has `SUBJECTS`, functions that draw a `testing.Subject` from a numpy Generator, and `FAULTS`,
faults to plant, each with the law that must catch it.
"""

from subjects import (
    attention,
    block_sparse,
    causal_conv,
    delta_rule,
    gated_linear,
    gated_slots,
    linear_recurrence,
    selective_scan,
)

MODULES = (
    attention,
    block_sparse,
    causal_conv,
    delta_rule,
    gated_linear,
    gated_slots,
    linear_recurrence,
    selective_scan,
)
SUBJECTS = {name: draw for module in MODULES for name, draw in module.SUBJECTS.items()}
FAULTS = {
    f"{module.__name__.split('.')[-1]}: {name}": fault
    for module in MODULES
    for name, fault in module.FAULTS.items()
}
