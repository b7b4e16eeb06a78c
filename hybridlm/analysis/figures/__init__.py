"""Figures for papers and reports, each a function of plain tables (pandas or records)."""

from hybridlm.analysis.figures.curves import (
    by_distance,
    learning_curves,
    loss_by_position,
    loss_curve,
    progress_curve,
    sweep_summary,
)
from hybridlm.analysis.figures.distillation import layer_errors
from hybridlm.analysis.figures.layers import layer_pattern, state_sizes
from hybridlm.analysis.figures.maps import attention_map, head_map, heat_map, needle_map, task_map
from hybridlm.analysis.figures.probes import probe_panels
from hybridlm.analysis.figures.style import (
    FAINT,
    GRID,
    INK,
    PALETTE,
    plain_axes,
    save,
    to_svg,
    token_label,
)

__all__ = [
    "FAINT",
    "GRID",
    "INK",
    "PALETTE",
    "attention_map",
    "by_distance",
    "head_map",
    "heat_map",
    "layer_errors",
    "layer_pattern",
    "learning_curves",
    "loss_by_position",
    "loss_curve",
    "needle_map",
    "plain_axes",
    "probe_panels",
    "progress_curve",
    "save",
    "state_sizes",
    "sweep_summary",
    "task_map",
    "to_svg",
    "token_label",
]
