"""Figures draw what plain tables say, in either form, as vector graphics in one style."""

import random
import re

import numpy as np
import pytest

from hybridlm.analysis import figures
from hybridlm.analysis.figures.style import RULES, WIDTH
from hybridlm.analysis.rows import layer_rows, state_rows
from hybridlm.analysis.tables import frame
from hybridlm.errors import UserError
from hybridlm.pages.scheme import DARK, DARK_PALETTE, LIGHT, PALETTE
from tests.analysis.folders import head_records, smoke_config


def curves(runs=3, steps=(1, 2, 3)):
    """Records of runs of two arms, with drawn losses."""
    return [
        dict(run=f"{arm}{seed}", arm=arm, step=s, tokens=10 * s, loss=random.uniform(1, 3))
        for arm in "ab"
        for seed in range(runs)
        for s in steps
    ]


def test_a_line_is_the_mean_of_an_arm_and_its_band_the_range():
    rows = curves()
    (axes,) = figures.learning_curves(rows, by="arm").axes
    line, other = (line for line in axes.lines)
    of_a = np.array([r["loss"] for r in rows if r["arm"] == "a"]).reshape(3, 3)
    np.testing.assert_allclose(line.get_ydata(), of_a.mean(axis=0))
    assert list(line.get_xdata()) == [10, 20, 30] and other.get_label() == "b"
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == of_a.min() and band.max() == of_a.max()


def test_an_arm_ends_where_its_shortest_run_does():
    rows = [r for r in curves() if r["run"] != "a1" or r["step"] < 3]
    (axes,) = figures.learning_curves(rows, x="step", by="arm", band="interval").axes
    assert list(axes.lines[0].get_xdata()) == [1, 2] and list(axes.lines[1].get_xdata()) == [
        1,
        2,
        3,
    ]


def test_a_sweep_has_a_point_and_an_interval_for_each_setting():
    rows = [dict(window=w, loss=w + s) for w in (8, 64) for s in (-1.0, 0.0, 1.0)]
    (axes,) = figures.sweep_summary(rows, x="window", y="loss").axes
    (bars,) = axes.containers
    assert list(bars.lines[0].get_ydata()) == [8.0, 64.0]
    (low, high), _ = (path.vertices[:, 1] for path in bars.lines[2][0].get_paths())
    assert high - 8 == pytest.approx(8 - low) == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    assert axes.get_xscale() == "log"


def test_the_map_of_heads_has_a_row_for_each_head_and_a_column_for_each_step():
    scores = np.random.default_rng().random((4, 2, 3))
    rows = [r for step, of in enumerate(scores) for r in head_records(step, of.tolist())]
    axes = figures.head_map(rows).axes[0]
    cells = np.asarray(axes.collections[0].get_array()).reshape(6, 4)
    np.testing.assert_allclose(cells[::-1], scores.transpose(1, 2, 0).reshape(6, 4))
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["1.2", "1.1", "1.0", "0.2", "0.1", "0.0"]


def test_effective_attention_has_a_scale_with_two_signs():
    weights = np.tril(np.random.default_rng().normal(size=(6, 6)))
    image = figures.attention_map(weights, list("abcdef")).axes[0].collections[0]
    assert image.get_clim() == (-np.abs(weights).max(), np.abs(weights).max())
    with pytest.raises(ValueError, match=r"weights have the shape \(6, 6\), and there are 5"):
        figures.attention_map(weights, list("abcde"))


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("shares", [[1.0, 1.0], [0.5, 0.0], [0.0]])
def test_what_is_not_finite_leaves_a_gap_in_a_map(shares):
    """`shares`: of the values of a task or of a query that are finite."""
    values = {f"{i}": np.where(np.arange(4) < 4 * s, 0.25, np.nan) for i, s in enumerate(shares)}
    rows = [
        dict(task=task, length=n, accuracy=value)
        for task, drawn in values.items()
        for n, value in enumerate(drawn)
    ]
    other = [dict(task="perplexity", length=1, loss=2.0, figure="loss")]
    for figure in (
        figures.task_map(rows + other),
        figures.attention_map(np.stack(list(values.values())), list(values), list("abcd")),
    ):
        figures.to_svg(figure)
        shown = np.ma.asarray(figure.axes[0].collections[0].get_array()).reshape(len(shares), 4)
        np.testing.assert_array_equal(shown.filled(np.nan), np.stack(list(values.values())))
    figures.to_svg(figures.task_map([]))


def all_figures():
    """Every figure, of pandas tables; the other tests give records."""
    rows, config = curves(), smoke_config().model
    heads = [r for step in (0, 4) for r in head_records(step, [[0.1, 0.9], [0.2, 0.3]])]
    places = [dict(step=s, first=i, last=2 * i, bits_per_byte=2.0) for s in (1, 2) for i in (0, 1)]
    cells = [dict(length=n, depth=d, accuracy=0.5) for n in (32, 64) for d in (0.0, 50.0)]
    tasks = [dict(task=t, length=n, accuracy=0.5) for n in (32, 64) for t in ("needle", "vt")]
    yield figures.learning_curves(frame(rows), by="arm")
    yield figures.learning_curves(frame(rows[:3]), x="step")
    yield figures.loss_by_position(frame(places))
    yield figures.head_map(frame(heads))
    yield figures.head_map(frame(heads[:4]))
    yield figures.needle_map(frame(cells))
    yield figures.task_map(frame(tasks))
    yield figures.by_distance(frame([dict(step=1, first=1, last=2, influence=0.1)]))
    yield figures.sweep_summary(frame(rows), x="arm", y="loss")
    yield figures.layer_pattern(frame(layer_rows(config, 64)), length=64)
    yield figures.state_sizes(frame(state_rows(config)))
    yield figures.attention_map(np.eye(30), [str(i) for i in range(30)])
    yield figures.loss_curve([], [])
    yield figures.layer_errors(frame([dict(step=1, layer=0, error=0.1)]))
    yield figures.layer_errors([])


def test_every_figure_is_vector_graphics_that_follows_the_scheme():
    """All ink and lines have a colour that the rules of the dark scheme replace."""
    known = set(re.findall(r'="(?:fill|stroke): (#[0-9a-f]{6})"', RULES))
    white = {"#ffffff", "#111111"}  # numbers in cells, whose ground is the same in both schemes
    for figure in all_figures():
        assert figure.get_figwidth() <= 7.0
        text = figure._repr_svg_()  # what a notebook shows
        body = re.sub(r"<defs>.*?</defs>|<style>.*?</style>", "", text, flags=re.DOTALL)
        words = re.findall(r'<text style="[^"]*fill: (#[0-9a-f]{6})', body)
        assert words and set(words) <= known | white
        strokes = re.findall(r"fill: none; stroke: (#[0-9a-f]{6})", body)
        assert set(strokes) <= known | white, figure
        assert "prefers-color-scheme: dark" in text


def test_the_same_figure_has_the_same_bits():
    rows = curves()
    one, other = (figures.to_svg(figures.learning_curves(rows, by="arm")) for _ in range(2))
    assert one == other


def contrast(one, other):
    """WCAG 2's ratio of two colours."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colours", "palette"), [(LIGHT, PALETTE), (DARK, DARK_PALETTE)])
def test_text_and_lines_stand_out_from_their_ground(colours, palette):
    assert contrast(colours["ink"], colours["ground"]) >= 7
    assert contrast(colours["soft"], colours["ground"]) >= 4.5
    assert all(contrast(colour, colours["ground"]) >= 2 for colour in palette)


def test_figures_are_written_as_svg_and_pdf(tmp_path):
    figure = figures.loss_curve([dict(step=1, bits_per_byte=2.0)], [])
    figures.save(figure, tmp_path / "a.svg")
    figures.save(figure, tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    assert WIDTH * 96 < 480
    with pytest.raises(UserError, match=r"figures are written as .svg or .pdf"):
        figures.save(figure, tmp_path / "a.png")


def probed(run):
    """Entries of two layers of two heads, at two steps, with drawn figures."""
    rows = []
    for step in (1, 2):
        for layer in (0, 1):
            about = dict(run=run, step=step, layer=layer, mixer="ab"[layer])
            rows.append(dict(about, probe="layer_probing", accuracy=random.random(), chance=0.1))
            for head in (0, 1):
                own = dict(about, head=head)
                rows.append(dict(own, probe="retrieval_heads", copy=random.random(), mass=0.0))
                rows.append(dict(own, probe="qk_distance", relative=random.random()))
    return rows


def test_probes_have_a_panel_each_with_the_newest_step_and_every_head():
    rows = probed("x")
    layers, copies, distances = figures.probe_panels(rows).axes
    newest = {r["layer"]: r["accuracy"] for r in rows if r["step"] == 2 and "accuracy" in r}
    assert dict(zip(*layers.lines[0].get_data())) == newest
    dots = sorted(y for line in copies.lines for y in line.get_ydata())
    assert dots == sorted(r["copy"] for r in rows if r["step"] == 2 and "copy" in r)
    assert [list(line.get_xdata()) for line in distances.lines] == [[1, 2]] * 4
    both = figures.probe_panels([*rows, *probed("y")])
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["x", "y"]
    with pytest.raises(UserError, match="no entry of a probe"):
        figures.probe_panels([dict(probe="entropy", step=1)])
