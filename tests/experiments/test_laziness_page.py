"""The laziness README: every number is in a marked block, or a constant of the protocol."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import (
    claims,
    comparisons,
    endpoint,
    figures,
    measure,
    page,
    paired,
    probed,
    results,
    runs,
    tables,
)
from experiments.large_window_laziness.arms import (
    ARMS,
    CONTROL_SEEDS,
    CURRICULUM,
    LARGE,
    MAIN,
    NEAR,
    RATES,
    SEEDS,
    SETS,
    SWEEP_SEEDS,
)
from experiments.large_window_laziness.text import arms as text_arms
from experiments.large_window_laziness.text import corpus
from experiments.large_window_laziness.text import runs as text_runs
from hybridlm.analysis.figures import to_svg
from hybridlm.models.params import Model
from hybridlm.probes.linear import TEST_SHARE
from tests.experiments.planted_runs import Planted, made

FOLDER = claims.RESULTS / "main"


def protocol():
    """Phrases of the page with all their numbers, made from the code."""
    *windows, full = MAIN.windows
    small, large, length, task = MAIN.small, MAIN.large, MAIN.task.length, MAIN.task
    (near_first, near_last), (far_first, far_last) = task.bins[0], task.bins[-1]
    listed = ", ".join(map(str, windows))
    reach = {w: ARMS["main"][f"w{w}-rope"].stack_reach for w in windows}
    count = sum(len(claim.contrasts) for claim in claims.declared())
    least = 2.0**-claims.FEWEST * count
    hundredth = round(100 * paired.LEVEL)
    parameters = Model.of(ARMS["main"]["w4-rope"].model()).count()
    yield f"receptive field to {small} tokens destroys"
    yield f"efficient layers of the largest window to {small} changes"
    yield f"By {MAIN.long:,} steps the largest"
    yield f"accuracy of at least {runs.FORMED}) in at least {claims.FEWEST} seeds"
    yield f"attention over {NEAR} tokens, which all"
    yield f"Width {MAIN.width}, {MAIN.heads} heads, an MLP of {MAIN.mlp}, {parameters:,} parameters"
    yield f"Windows of {listed} and full attention, each"
    yield f"{length} tokens, chunks of {task.span} random symbols"
    yield "local text of order 2 and 3"  # tested in test_laziness_stream.py
    yield f'"Far" is {far_first}–{far_last} tokens back'
    warmup = ARMS["main"]["w4-rope"].optimizer().warmup_steps
    yield (
        f"{MAIN.batch} sequences a step, AdamW at a constant rate after {warmup} steps, up to"
        f" {MAIN.core:,} steps"
    )
    yield "took 40 minutes on two cores (2026-11-30, Intel"  # measured: 2,381 s
    yield f"stops {MAIN.after} steps after"
    yield f"it stops {MAIN.after} steps after the schedule has ended, too (step {CURRICULUM * MAIN.core:,.0f})"
    yield f"of at least {runs.FORMED} at two measurements in a row, {MAIN.every} steps apart"
    yield f"at least {measure.FAR_TOKENS:,} far tokens"
    yield f"bounded to {', '.join(map(str, windows[:-1]))} and {windows[-1]} tokens"
    yield (
        f"the {endpoint.TOP_HEADS} best heads, and without {endpoint.TOP_HEADS} others of the same layers"
        f" (up to {endpoint.RANDOM_DRAWS} draws)"
    )
    yield f"at {endpoint.LENGTHS[1]} and {endpoint.LENGTHS[2]} times the length; gradient"
    yield (
        f"two windows of {large} reach all {reach[large]} tokens, two of 16 reach {reach[16]}, two of"
        f" {small} reach {reach[small]}"
    )
    yield f"RoPE and NoPE: the main table | {len(SEEDS)} |"
    yield (
        f"windows {small} and {large} to a fixed {MAIN.long:,} steps; they go on with the runs of"
        f" `core` | {len(SEEDS)} |"
    )
    yield f"for Gated DeltaNet, Lightning and Mamba-2, too | {CONTROL_SEEDS} |"
    yield (
        f"Gated DeltaNet, Lightning, Mamba-2; NHA with windows and slots of {small} and"
        f" {MAIN.windows[2]} | {len(SEEDS)} |"
    )
    yield f"short convolution of {NEAR} as"
    yield f"end at window {large}: drawn each step ({small} or {large}), doubling"
    yield (
        f"dropout ({large}, or a token's own key alone; the shared layer stays at {NEAR}) | {len(SEEDS)} |"
    )
    words = {4: "four", 6: "six"}
    yield (
        f"learning rates, windows {small} and {large}: {words[len(RATES['nope'])]} with NoPE,"
        f" {words[len(RATES['rope'])]} with RoPE | {len(SWEEP_SEEDS)} others"
    )
    yield f"delay of {np.exp(claims.DELAY_MARGIN) - 1:.0%}, {claims.ACCURACY_MARGIN} of accuracy); where"
    yield f"({claims.ACCURACY_MARGIN} of accuracy, {claims.LOSS_MARGIN} nats)"
    yield f"over the {count} contrasts"
    yield f"to hold is at most {hundredth}%"
    yield f"together it is at most {2 * hundredth}%"
    yield (
        f"needs {claims.FEWEST} (2^-{claims.FEWEST} x {count} = {least:.3f}), or"
        f" {claims.FEWEST + 1} if it refutes"
    )
    yield f"with fewer than {claims.FEWEST} is undecided"
    yield "may leave out 0 where"
    yield f"coverage of the {100 - hundredth}% interval"
    yield f"it is above {hundredth}%)"
    yield ", ".join(str(n * length) for n in endpoint.LENGTHS[:2]) + (
        f" and {endpoint.LENGTHS[2] * length} tokens; the others are on copies from"
        f" {far_first}–{far_last} tokens back"
    )
    yield f"nearest copies lie {near_first}–{near_last} tokens back"
    yield f"runs of `long` have all {MAIN.long:,} steps"
    yield f"runs of windows {small} and {large}:"
    yield f"of window {small} with the same seed"
    yield f"steps with window {small} |"
    yield (
        f"with window {small} only the full layers can copy; the steps with window {large} add nothing"
        " | 2 | 1 | > 1 |"
    )
    yield "what Mamba-2 and Gated DeltaNet carry"
    yield "helps in every step | 1 | 1/2 | < 1 |"  # test_laziness_cured.py
    yield "narrow ones teach | > 2 | > 1 | > 1 |"
    yield "that window alone | 1 to 2 | 1/2 to 1 | 1 |"
    yield "their sum is 1 at retrieval"
    yield f"no later than window {small}."
    yield f"schedules that end at window {large}. One helps where it is earlier than window {large}, and"
    few, five = paired.FEWEST_PAIRS, CONTROL_SEEDS
    yield f"fewer than {few} seeds no such test decides, and no interval has {100 - hundredth}%"
    yield f"centre of {five} symmetric differences with {1 - 2.0 ** (1 - five):.0%}"
    yield f"window layers at {small} and at {large}"
    yield f"pull under window {small} is"
    yield f"at {', '.join(map(str, endpoint.LENGTHS[:2]))} and {endpoint.LENGTHS[2]} times the length |"
    held_out = int(np.ceil(TEST_SHARE * probed.PROMPTS))
    yield f"which of {probed.CLASSES} symbols"
    yield f"{held_out} of {probed.PROMPTS} sequences are held out"
    yield f"symbol of those {held_out}"
    yield f"has {len(SWEEP_SEEDS)} seeds a rate"
    yield (
        f"({LARGE.task.length:,} tokens, {LARGE.depth} layers and a first one, 100M parameters, for a"
    )
    yield "matrix at 16k"
    yield f"ends {MAIN.after} steps after"
    yield f"at {endpoint.LENGTHS[1]} and {endpoint.LENGTHS[2]} times the length, are"
    yield "at 256 and 96 tokens, with its results"  # FIRST_PROTOCOL.md
    yield from real_text()


def real_text():
    """The same of the section on real text."""
    scale, seeds = text_arms.TEXT, len(text_arms.SEEDS)
    *windows, last = scale.windows
    body = Model.of(text_arms.arms(scale)[0].model()).count(embeddings=False)
    low, high = scale.span
    yield (
        f"{scale.depth} layers of (window, full), width {scale.width}, {scale.heads} heads of"
        f" {scale.width // scale.heads}, an MLP of {scale.mlp}, a BPE of {scale.vocab:,}, sequences of"
        f" {scale.length:,} tokens"
    )
    yield f"{body / 1e6:.1f}M parameters without the embedding"
    yield (
        f"Windows of {', '.join(map(str, windows))}, {last:,} and full attention with RoPE,"
        f" {scale.nope[0]} and {scale.nope[1]:,} with NoPE in the full layers; {seeds} seeds, paired as"
        f" above: {seeds * len(text_arms.arms(scale))} runs of {scale.tokens // 10**6}M tokens"
    )
    yield f"{corpus.HELD_OUT_SHARE:.0%} of the files"
    yield f"Copies of {low} to {high} tokens"
    yield f"over {corpus.SPLICED:.0%} of its tokens"
    yield f"same {corpus.CONTEXT} tokens"
    yield f"on {scale.rows} held-out sequences"
    yield f"{2 * scale.length:,} tokens, bounded"
    yield f"{text_runs.TRIAL_SECONDS:.0f} s and the steps"
    yield f"test is 1/{2**seeds}"


def outside_blocks(text):
    """The page in one line, without blocks, code, links, numbers of items and of papers."""
    text = re.sub(r"<!-- (\w+) main -->.*?<!-- end of \1 main -->", "", text, flags=re.S)
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    text = re.sub(r"^\d\. ", "", text, flags=re.M)
    return " ".join(text.replace("arXiv 2606.15378", "").split())


def test_every_number_is_in_a_block_or_a_constant_of_the_protocol():
    """A phrase that the code makes must be in the page; without all phrases no digit is left."""
    whole = outside_blocks(results.README.read_text(encoding="utf-8"))
    left = whole
    for phrase in sorted(protocol(), key=len, reverse=True):
        assert phrase in whole, phrase
        left = left.replace(phrase, "")
    found = [left[max(m.start() - 40, 0) : m.end() + 20] for m in re.finditer(r"\d+", left)]
    assert not found
    assert not re.search(r"\d", outside_blocks(results.PAGES[1].read_text(encoding="utf-8")))


def test_every_block_of_the_page_is_made_by_the_results():
    text = "".join(path.read_text(encoding="utf-8") for path in results.PAGES)
    named = re.findall(r"<!-- (\w+) main -->", text)
    assert sorted(named) == sorted(results.blocks("main"))
    assert len(re.findall("<!-- end of ", text)) == len(named)


def written(folder, found):
    """The tables of these runs, as `results` writes them, but for influence.tsv."""
    key = lambda run: {"arm": run.arm, "seed": run.seed}  # noqa: E731
    curves = [
        key(run) | {name: values[i] for name, values in run.curve.items()}
        for run in found
        for i in range(len(run.steps))
    ]
    tables.write(folder / "curves.tsv", tables.curve_columns(), curves)
    tables.write(folder / "runs.tsv", tables.run_columns(), [key(run) | run.facts for run in found])
    verdicts = claims.rows(claims.verdicts(found))
    tables.write(folder / "claims.tsv", claims.COLUMNS, verdicts)
    tables.write(folder / "comparisons.tsv", comparisons.COLUMNS, comparisons.compared(found))
    tables.write(folder / "posthoc.tsv", comparisons.POST_HOC, comparisons.post_hoc(found))


def folder_of(run, workdir):
    """A complete run's folder, as far as `results` reads it."""
    folder = workdir / "main" / run.arm / str(run.seed)
    folder.mkdir(parents=True)
    columns = tables.distances(MAIN)
    lines = [
        {
            "step": int(step),
            "accuracy": [float(run.curve[column][i]) for column in columns],
            "far_tokens": 1111,
            "local_nll": float(run.curve["local_nll"][i]),
            "copied_nll": 1.0,
            "heads": [[layer, 0, 0.1 * layer, 0.5, 0.3] for layer in (1, 2, 3, 4)],
            "qk": [[2, 0, 0.5], [4, 0, 0.5]],
        }
        for i, step in enumerate(run.steps)
    ]
    (folder / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bounds = [str(window) for window in MAIN.windows]
    end = {
        "version": endpoint.VERSION,
        "restricted": {g: dict.fromkeys(bounds, 0.5) for g in ("full", "local")},
        "masked": {"none": 1.0, "retrieval": 0.0, "random": 0.9},
        "lengths": {"1": 1.0, "2": 0.9, "4": 0.8},
        "influence": [[0, 0, 1.0], [1, 3, 0.5]],
    }
    facts = dict(arm=run.arm, seed=run.seed, steps=int(run.steps[-1]), budget=5000, end=end)
    facts |= dict(cpu_seconds=30.0, wall_seconds=40.0)
    (folder / "done.json").write_text(json.dumps(facts))


def test_the_command_writes_all_tables_and_figures(tmp_path, capsys):
    """From the folders of two seeds; the README is another page's and stays."""
    before = results.README.read_text(encoding="utf-8")
    for run in made(Planted(), 0, seeds=range(2), sets=("core",)):
        folder_of(run, tmp_path)
    assert results.main(["--workdir", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "20 runs, 10 minutes of one core" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "out" / "main").iterdir()}
    made_ = ("curves", "runs", "influence", "claims", "comparisons", "posthoc")
    assert files >= {f"{name}.tsv" for name in made_} | {"time.svg", "length.svg"}
    blocks = results.blocks("main", tmp_path / "out")
    assert "20 of the 100 runs" in blocks["findings"] and "w4-rope" in blocks["arms"]
    assert "measured by earlier code" not in blocks["arms"]
    assert results.README.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("sets", [(), ("core",), tuple(SETS["main"])])
def test_a_page_is_made_of_any_runs(tmp_path, sets):
    """None, the main table alone and all sets, with two seeds of each arm."""
    found = [
        run
        for name in sets
        for run in made(
            Planted(),
            1,
            seeds=SWEEP_SEEDS if name == "sweep" else SEEDS[:2],
            sets=(name,),
        )
    ]
    written(tmp_path / "main", found)
    made_of = results.blocks("main", tmp_path)
    assert sorted(made_of) == sorted(results.blocks("main"))
    lacks = {name for name, block in made_of.items() if page.NOT_RUN in block}
    always = {"statistics", "probes", "text_tables"}  # no runs of this folder are behind them
    tables_ = [name for name in comparisons.pairs() if name != "positions"]
    beyond = {*tables_, *(f"{name}_tables" for name in tables_)}
    assert lacks - always == {
        (): {
            "findings",
            "near",
            "near_tables",
            "posthoc",
            "counts",
            "positions",
            "positions_tables",
            *beyond,
        },
        ("core",): {"counts", *beyond},
    }.get(sets, set())


@pytest.mark.parametrize("path", results.PAGES, ids=lambda path: path.name)
def test_the_page_has_the_committed_tables(path):
    text = path.read_text(encoding="utf-8")
    assert results.filled(text, "main") == text


@pytest.mark.parametrize("name", ["claims", "comparisons", "posthoc"])
def test_the_committed_tables_follow_from_the_runs(name):
    found = tables.read_runs(FOLDER)
    rows, columns = {
        "claims": lambda: (claims.rows(claims.verdicts(found)), claims.COLUMNS),
        "comparisons": lambda: (comparisons.compared(found), comparisons.COLUMNS),
        "posthoc": lambda: (comparisons.post_hoc(found), comparisons.POST_HOC),
    }[name]()
    written = [{column: str(row[column]) for column in columns} for row in rows]
    assert tables.read(FOLDER / f"{name}.tsv") == written


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_committed_figures_are_those_of_the_tables(name):
    """Byte for byte; a figure without its runs is not there."""
    drawn = figures.FIGURES[name](
        tables.read_runs(FOLDER), MAIN, tables.read(FOLDER / "influence.tsv")
    )
    path = FOLDER / f"{name}.svg"
    assert path.exists() == (drawn is not None)
    assert drawn is None or path.read_text(encoding="utf-8") == to_svg(drawn)
