"""The figures of a search show its records."""

import math

import pytest

from hybridlm.analysis.figures import to_svg
from hybridlm.analysis.selection import figures, quality_figure
from hybridlm.distill.selection.noise import interval


@pytest.fixture
def record():
    """Two methods on a model of 4 layers, one of which is no candidate; one model has diverged."""

    def point(method, replaced, values):
        return {"method": method, "replaced": replaced, "values": values}

    return {
        "depth": 4,
        "layers": [0, 1, 3],
        "metric": "kl",
        "higher_is_better": False,
        "ends": {"teacher": [0.0, 0.0], "student": [2.0, 2.2]},
        "selections": [
            {"method": "greedy", "kept": [1, 3], "values": [0.1, 0.3]},
            {"method": "uniform", "kept": [0, 3], "values": [0.5, 0.5]},
        ],
        "curve": [point("greedy", 2, [0.6, 0.8]), point("uniform", 2, [math.nan, 1.0])],
        "retrieval": {
            "by": "retrieval",
            "layers": [{"layer": i, "mass": i / 4, "induction": 0.0} for i in range(4)],
        },
    }


def test_each_method_is_a_line_from_the_teacher_on(record):
    (axes,) = quality_figure(record).axes
    lines = {c.get_label(): c.lines[0].get_ydata().tolist() for c in axes.containers}
    wanted = [[0.0, 0.2, 0.7], [0.0, 0.5]]
    assert lines == {"greedy": pytest.approx(wanted[0]), "uniform": pytest.approx(wanted[1])}
    bars = axes.containers[0].lines[2][0].get_segments()
    assert bars[1][1][1] - 0.2 == pytest.approx(interval([0.1, 0.3]).half)


def test_figures_are_the_same_bits_each_time(record):
    first, second = ({n: to_svg(f) for n, f in figures(record).items()} for _ in range(2))
    assert first == second and set(first) == {"quality", "layers"}
    assert "greedy" in first["layers"] and "best head" in first["layers"]
