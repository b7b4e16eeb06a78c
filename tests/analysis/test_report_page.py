"""The report works in a browser: it sorts, its figures and downloads are there, nothing is loaded."""

import base64
import json
import re
import time

import numpy as np
import pytest

from hybridlm.analysis import Inspected, Results, Run, Runs, figures, newest, open_checkpoint
from hybridlm.analysis.report import AttentionText, attention_text, write_report
from hybridlm.analysis.report.parts import Parts
from hybridlm.analysis.rows import layer_rows, state_rows
from hybridlm.config import to_dict
from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.errors import RunError, UserError
from hybridlm.models.params import Model
from hybridlm.runs import OpenedModel, checkpoint
from tests.analysis.folders import (
    evaluation,
    head_records,
    smoke_config,
    write_lines,
    write_run,
)
from tests.analysis.test_report import ENVIRONMENT, FACTS, eval_record, train_record
from tests.browser import NAMES, browser, installed
from tests.models import small

SCREENS = [(w, h, scheme) for w, h in ((1280, 900), (390, 844)) for scheme in ("light", "dark")]
GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 26)"}
LEAST = 8.5  # pixels of the smallest label, on a phone too

needs_browser = pytest.mark.skipif(
    installed() is None, reason=f"no browser is installed: {', '.join(NAMES)}"
)


def run_folder(folder, seed=0, window=8):
    """A finished run with probes and evaluations."""
    settings = {**to_dict(smoke_config()), "seed": seed}
    settings["model"]["mixers"]["swa"]["window"] = window
    records = [FACTS, train_record(4), eval_record(4), train_record(8)]
    records.append({**eval_record(8), "loss": 1.0 + window / 100 + seed / 10})
    write_run(folder, records, settings, ENVIRONMENT)
    scores = np.random.default_rng(seed).random((2, 2, 3)).tolist()
    heads = [r for step, of in zip((4, 8), scores) for r in head_records(step, of)]
    write_lines(folder / "probes.jsonl", heads)
    (folder / "eval").mkdir()
    written = json.dumps(evaluation(8, {32: [1.0, 0.5], 64: [0.5, 0.0]}))
    (folder / "eval" / "eval.json").write_text(written)
    return folder


@pytest.fixture
def sweep(tmp_path):
    for window in (8, 16):
        for seed in (0, 1):
            run_folder(tmp_path / "sweep" / f"w={window},s={seed}", seed, window)
    return tmp_path / "sweep"


def drawn_text(length=12, heads=2):
    """Attention of two layers over a text; the second is effective and has two signs."""
    values = np.random.default_rng().normal(size=(2, heads, length, length)).astype(np.float32)
    causal = np.tril(np.ones((length, length), np.float32))
    tokens = ["<b>", "\n", *(f" t{i}" for i in range(length - 2))]
    layers = {"layer 0: full": np.abs(values[0]) * causal, "layer 1: gdn": values[1] * causal}
    return AttentionText("A text", tokens, layers)


def made_by(page):
    """The code under the figures."""
    page = page.replace("<pre class=made>hybridlm eval", "")
    texts = re.findall(r"<pre class=made>(.*?)</pre>", page, re.DOTALL)
    return [t.replace("&#x27;", "'").replace("&quot;", '"') for t in texts]


def run_code(code):
    """Runs the code under a figure; its last line is the figure."""
    *before, last = code.split("\n")
    known = dict(
        Run=Run,
        Runs=Runs,
        Results=Results,
        figures=figures,
        newest=newest,
        open_checkpoint=open_checkpoint,
        layer_rows=layer_rows,
        state_rows=state_rows,
    )
    exec("\n".join(before), known)
    return eval(last, known)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w=8,s=0", ""])
def test_the_code_under_every_figure_makes_it(sweep, name):
    """Of a run, and of a sweep."""
    page = write_report(sweep / name).read_text()
    codes = made_by(page)
    assert len(codes) == page.count("<figure id=") >= 6
    for code in codes:
        axes = run_code(code).axes[0]
        assert axes.lines or axes.patches or axes.collections or axes.images, code


def test_a_sweep_is_compared(sweep):
    path = write_report(f"{sweep}/w=*")
    page = path.read_text()
    assert path == sweep / "report.html"
    marked = re.findall(r'<td class="number marked"[^>]*>([^<]*)', page)
    assert marked[0] == "1.08"  # the least loss: window 8, seed 0
    assert "<td>model.mixers.swa.window</td>" in page and "<td>seed</td>" in page
    for title in ("Runs", "Settings", "Learning curves", "Against settings", "Evaluations"):
        assert f"<h2>{title}</h2>" in page


def test_runs_of_unknown_length_are_compared(tmp_path):
    """A config without data and steps: no number of tokens, and not finished. The first run lacks
    the evaluations that the second has.
    """
    for name, seed in (("a", 0), ("b", 1)):
        write_run(tmp_path / name, [train_record(4)], {"seed": 0, "width": seed})
    (tmp_path / "b" / "eval.json").write_text(json.dumps(evaluation(4, {32: [1.0, 0.5]})))
    page = write_report(tmp_path).read_text()
    assert "<b>2</b><span>runs" in page and "<b>0</b><span>of them finished" in page
    assert "<b>Needle accuracy 32 against width</b>" in page


@pytest.mark.slow
def test_a_model_folder_has_its_layers_and_what_was_measured_of_it(tmp_path):
    config = smoke_config().model
    folder = tmp_path / "model"
    params = Model.of(config).abstract
    checkpoint.save_tree(folder / "params", _zeros(params))
    settings = {"model": to_dict(config), "length": 64, "from": {"path": "runs/a<b", "step": 8}}
    (folder / "model.json").write_text(json.dumps(settings))
    written = json.dumps(evaluation(8, {32: [1.0, 0.5]}))
    (folder / "eval.json").write_text(written)
    page = write_report(folder).read_text()
    assert "runs/a&lt;b at step 8" in page and "<h2>Evaluations</h2>" in page
    assert "<td>layers.2.mlp.up.kernel</td>" in page
    for code in made_by(page):
        run_code(code)


def _zeros(tree):
    return {
        k: _zeros(v) if isinstance(v, dict) else np.zeros(v.shape, v.dtype) for k, v in tree.items()
    }


def test_results_of_an_experiment_are_shown(tmp_path, root):
    """Those that are committed; what is no folder of results or runs is refused."""
    folder = root / "experiments" / "large_window_laziness"
    page = write_report(folder, tmp_path / "a.html").read_text()
    tables, pictures = (
        list(folder.rglob("*.tsv")),
        {p for t in folder.rglob("*.tsv") for p in t.parent.glob("*.svg")},
    )
    assert page.count("<table class=sortable>") == len(tables) > 0
    assert page.count('src="data:image/svg+xml;base64,') == len(pictures) > 0
    assert "<h2>results/main: figures</h2>" in page and "<summary>README.md</summary>" in page
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="leads to no run"):
        write_report(tmp_path / "empty")


def test_a_download_holds_every_row_once():
    """Of a table that is drawn twice, the page has one text; a field may hold a comma."""
    parts, rows = Parts(), [dict(a=1, b="x,y"), dict(a=2.5, c=None)]
    parts.table("one", rows[:1], download=rows)
    parts.table("two", rows)
    assert parts.data["csv"] == {"one-1": 'a,b,c\n1,"x,y",\n2.5,,\n', "two-2": ["one-1"]}


def test_weights_that_do_not_fit_the_tokens_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\): \(heads, 2, 2\) would fit"):
        AttentionText("a", ["x", "y"], {"layer 0": np.zeros((1, 2, 3))})
    with pytest.raises(ValueError, match="are more than the 4,000,000 that a page holds"):
        AttentionText("a", ["x"] * 2001, {"layer 0": np.zeros((1, 2001, 2001))})


def test_attention_that_no_map_can_show_is_refused():
    """Over an empty text, and of a layer whose parts attend each by itself."""
    model = Model.of(small.model_config("swa hymba", vocab_size=258))
    m = Inspected(OpenedModel(None, model, {}, ByteTokenizer(), None, {}, None))
    with pytest.raises(UserError, match="--text is empty: give the text"):
        attention_text(m, "")
    said = r"has layer 1 \(hymba\), whose parts attention, recurrence attend each.*: leave it out"
    with pytest.raises(UserError, match=said):
        attention_text(m, "a text", ["hymba"])


def test_the_layer_whose_attention_is_computed_is_said(monkeypatch, impatient, capsys):
    def slow(self, text, layer, heads):
        time.sleep(0.1)
        length = len(self.strings(text)[0])
        return np.zeros((1, len(heads), length, length))

    monkeypatch.setattr(Inspected, "effective_attention", slow)
    model = Model.of(small.model_config("swa", vocab_size=258))
    m = Inspected(OpenedModel(None, model, {}, ByteTokenizer(), None, {}, None))
    assert list(attention_text(m, "ab").layers) == ["layer 0: swa"]
    assert "computing the attention of layer 0 over the text ...\n" in capsys.readouterr().err


def test_layers_without_a_text_are_refused(tmp_path, refusal):
    said = refusal("report", "--workdir", run_folder(tmp_path / "run"), "--layers", "1")
    assert "--layers says whose attention over --text is shown" in said


def check_sorting(tab):
    """Every column of every table, both ways: numbers by size, and empty cells last."""
    columns = tab.run(
        "[...document.querySelectorAll('table.sortable')].map(t => [...t.tHead.rows[0].cells].length)"
    )
    for table, count in enumerate(columns):
        for column in range(count):
            for _ in range(2):
                found = tab.run(
                    f"(() => {{ const t = document.querySelectorAll('table.sortable')[{table}];"
                    f" const h = t.tHead.rows[0].cells[{column}]; h.firstChild.click();"
                    f" const cells = [...t.tBodies[0].rows].map(r => r.cells[{column}]);"
                    " return [h.ariaSort, h.classList.contains('number'),"
                    " cells.map(c => c.dataset.value ?? c.textContent)]; })()"
                )
                way, number, values = found
                if number:
                    present = [float(v) for v in values if v not in ("", "NaN")]
                    assert present == sorted(present, reverse=way == "descending")
                    assert all(v in ("", "NaN") for v in values[len(present) :])
                assert way in ("ascending", "descending")


def check_attention(tab, text):
    """Pointing at a token shows its weights, to the last digit of float32."""
    labels = list(text.layers)
    for number, label in enumerate(labels):
        weights = text.layers[label]
        tab.run(
            f"(() => {{ const s = document.querySelector('.attention select'); s.value = {number};"
            " s.dispatchEvent(new Event('change')); })()"
        )
        for query in (3, len(text.tokens) - 1):
            shown = tab.run(
                f"(() => {{ const s = document.querySelector('[data-token=\"{query}\"]');"
                " s.dispatchEvent(new PointerEvent('pointerenter'));"
                " return [...document.querySelectorAll('.exact tr')]"
                ".map(r => [Number(r.dataset.key), r.cells[1].textContent]) })()"
            )
            row = weights[0, query]
            order = sorted(np.flatnonzero(row), key=lambda k: -abs(row[k]))[:12]
            assert [key for key, _ in shown] == order
            assert [np.float32(v) for _, v in shown] == row[order].tolist()
    assert tab.run("document.querySelector('[data-token=\"0\"]').textContent") == "<b>"


def used(tab, path, text, width, height, scheme):
    """Opens a report as a reader does, and checks that the browser complained of nothing."""
    tab.open(path.as_uri(), width, height, scheme)
    colours = "getComputedStyle(document.body).backgroundColor"
    assert tab.run(colours) == GROUND[scheme]
    assert tab.run("document.documentElement.scrollWidth") <= width
    tab.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    sizes = tab.run(
        "[...document.querySelectorAll('svg.figure')].map(s => [s.getBoundingClientRect().width,"
        " s.viewBox.baseVal.width, Math.min(...[...s.querySelectorAll('text')]"
        ".map(t => parseFloat(getComputedStyle(t).fontSize)))])"
    )
    assert len(sizes) >= 6
    smallest = [label * shown / size for shown, size, label in sizes]
    assert min(smallest) >= LEAST, smallest
    assert all(shown > 250 for shown, *_ in sizes)
    ink = tab.run("getComputedStyle(document.querySelector('svg.figure text')).fill")
    assert (ink == "rgb(230, 230, 230)") == (scheme == "dark")
    check_sorting(tab)
    if text is not None:
        check_attention(tab, text)
    sizes = tab.run(
        "[...document.querySelectorAll('[data-csv]')].map(b => data.csv[b.dataset.csv])"
        ".map(t => (Array.isArray(t) ? data.csv[t[0]] : t).length)"
    )
    assert min(sizes) > 10
    kept = tab.run(
        "(() => { const kept = []; const click = HTMLAnchorElement.prototype.click;"
        " HTMLAnchorElement.prototype.click = function () { kept.push(this.download); };"
        " document.querySelectorAll('[data-csv], [data-svg]').forEach(b => b.click());"
        " HTMLAnchorElement.prototype.click = click; return kept })()"
    )
    assert len(kept) == len(set(kept)) >= 8 and all(k.endswith((".csv", ".svg")) for k in kept)
    tab.run("document.getElementById('scheme').click()")
    assert tab.run(colours) == GROUND["light"]
    assert tab.messages == []
    loaded = {r for r in tab.requests if not r.startswith(("data:", "blob:"))}
    assert loaded == {path.as_uri()}


@needs_browser
def test_the_report_works_on_a_phone_in_the_dark(tmp_path):
    text = drawn_text()
    path = write_report(run_folder(tmp_path / "run"), attention=[text])
    with browser(tmp_path / "profile") as tab:
        used(tab, path, text, 390, 844, "dark")


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "scheme"), SCREENS)
def test_the_reports_of_a_run_and_of_a_sweep_work(tmp_path, sweep, width, height, scheme):
    text = drawn_text()
    reports = [
        (write_report(sweep / "w=8,s=0", attention=[text]), text),
        (write_report(sweep), None),
    ]
    with browser(tmp_path / "profile") as tab:
        for path, view in reports:
            tab.requests.clear()
            used(tab, path, view, width, height, scheme)


def test_the_weights_in_the_page_are_those_given():
    text, parts = drawn_text(), Parts()
    assert 'data-view="0"' in parts.view(text)
    for packed, weights in zip(parts.data["views"][0]["maps"], text.layers.values(), strict=True):
        found = np.frombuffer(base64.b64decode(packed["data"]), "<f4")
        np.testing.assert_array_equal(found.reshape(weights.shape), weights)
