"""The laziness README: every number is in a marked block, or a constant of the protocol."""

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
    findings,
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
    CURRICULUM,
    LARGE,
    MAIN,
    NEAR,
    RATES,
    SEEDS,
    SETS,
    SWEEP_SEEDS,
)
from experiments.large_window_laziness.paired import Time
from experiments.large_window_laziness.text import arms as text_arms
from experiments.large_window_laziness.text import corpus
from experiments.large_window_laziness.text import runs as text_runs
from hybridlm.analysis.figures import to_svg
from hybridlm.models.params import Model
from hybridlm.probes.linear import TEST_SHARE
from tests.experiments.planted_runs import NEVER, ORDER, Planted, made

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
    yield f"for Gated DeltaNet, Lightning and Mamba-2, too | {len(SEEDS)} |"
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
    yield f"schedules that end at window {large}, over window {large} and over window {small} at"
    yield f"of window {small} with the same seed"
    yield f"steps with window {small} |"
    yield f"with window {small} only the full layers can copy; the steps with window {large} add nothing | 2 | 1 |"
    yield "helps in every step | 1 | 1/2 |"  # test_laziness_cured.py
    yield "narrow ones teach | > 2 | > 1 |"
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
    yield "for 40 steps"


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


def test_every_block_of_the_page_is_made_by_the_results():
    text = results.README.read_text(encoding="utf-8")
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
    always = {"statistics", "probes"}  # no runs of this folder are behind them
    assert lacks - always == {
        (): {
            "findings",
            "near",
            "posthoc",
            "controls",
            "recurrent",
            "cures",
            "counts",
            "positions",
        },
        ("core",): {"controls", "recurrent", "cures", "counts"},
    }.get(sets, set())


def test_the_spread_of_times_is_that_of_their_ratios():
    """Noise of 0.08 in each of two times is 0.11 in ln of their ratio; 10% is 0.8 of that."""
    text = findings.spread(made(Planted(), 0, sets=("core",)), MAIN)
    low, high = map(float, re.search(r"is ([\d.]+) to ([\d.]+) over", text).groups())
    assert 0.05 < low < 0.113 < high < 0.2
    assert "a delay of 10% is" in text and findings.spread([], MAIN) == ""


def test_the_page_has_the_committed_tables():
    text = results.README.read_text(encoding="utf-8")
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


def said(planted, **options):
    """The findings on synthetic tables."""
    found = made(planted, 0, **options)
    return findings.findings(found, MAIN, claims.verdicts(found), comparisons.compared(found))


def items(text):
    return re.findall(r"^\d\. (.*)$", text, flags=re.M)


def test_findings_say_that_a_claim_holds():
    text = said(Planted())
    assert [item.split("**")[1].rpartition(": ")[2] for item in items(text)] == ["holds"] * 5
    assert "w8 later than w4, w16 later than w8" in text and ": shown." in text
    assert text.startswith("All 100 runs of the main table have been made; 100 of them")


def test_findings_say_what_does_not_hold():
    reversed_ = dict(w4=2400.0, w8=1300.0, w16=900.0, w32=600.0, full=1500.0)
    text = said(Planted(times=reversed_, full_loss=0.02, nope=-0.3, late=0.3, local=0.1))
    assert all("does not hold" in item.split("**")[1] for item in items(text))
    assert ": refuted." in text


def test_findings_say_what_is_undecided():
    """All of w16 and w32 censored, so that nothing is known of their order."""
    text = said(Planted(times={**ORDER, "w16": NEVER, "w32": NEVER}))
    assert "full is not lazy: undecided**" in items(text)[1]
    assert "60 of them form retrieval" in text and "the 40 others are censored" in text
    assert "w16 > 5000" in text


def test_findings_say_what_holds_below_the_margin():
    times = dict(w4=2000.0, w8=2100.0, w16=2600.0, w32=3400.0, full=2500.0)
    text = said(Planted(times=times, noise=0.005))
    assert f"full is not lazy: {claims.BELOW}**" in items(text)[1]
    assert "w8 later than w4: shown, and below 10%" in text


def test_findings_say_what_has_not_been_run():
    late = items(said(Planted(), sets=("core",)))[3]
    assert late.startswith("**Convergence by 6,000 steps: not yet run**")
    few = said(Planted(), seeds=range(3))
    assert "undecided (3 of 9 seeds)" in few and "30 of the 100 runs" in few
    assert findings.findings([], MAIN, claims.verdicts([]), []) == page.NOT_RUN


def test_seeds_of_the_full_arms_are_counted():
    found = made(Planted(), 0)
    for i, run in enumerate(found):
        if run.arm == "full-rope":
            sides = dict(
                full_sees_4=0.1 if run.seed < 7 else 0.9, local_sees_4=0.1 + 0.08 * run.seed
            )
            found[i] = run._replace(facts=run.facts | sides)
    text = findings.full_arms(found, MAIN)
    assert "with RoPE, 7 of 10 seeds if the full layers are bounded, 5 if" in text
    assert "place are, 5 in both cases and 3 in neither; with NoPE, 10 of 10" in text


def with_near(factor, after):
    """Runs whose near copies are formed by `factor` x 1,000 steps with w32, far ones `after` times that."""
    found = []
    for run in made(Planted(), 0, sets=("core",)):
        large = run.arm.startswith("w32")
        rng = np.random.default_rng([run.seed, large])
        near = 1000 * (factor if large else 1.0) * np.exp(rng.normal(0, 0.05))
        far = near * (after if large else 1.05)
        steps = np.arange(0, 101) * 50
        curve = {name: np.zeros(101) for name in run.curve} | {"step": steps}
        curve[tables.distances(MAIN)[0]] = np.where(steps >= near, 0.9, 0.0)
        curve[tables.distances(MAIN)[-1]] = np.where(steps >= far, 0.9, 0.0)
        found.append(run._replace(curve=curve))
    return found


@pytest.mark.parametrize(
    ("factor", "after", "words"),
    [
        (
            2.0,
            1.05,
            "delays copying as such, and a further delay of far copies after near ones is not",
        ),
        (2.0, 1.6, "delays copying as such, and far copies after near ones are later still"),
        (1.0, 1.6, "a delay of copying as such is not shown, and far copies after near ones are"),
        (1.0, 1.05, "copying as such is not shown, and a further delay of far copies after near"),
        (0.5, 1.05, "copies from near earlier"),
    ],
)
def test_a_delay_of_near_copies_is_told_from_one_of_far_copies_after_them(factor, after, words):
    found = with_near(factor, after)
    rows = comparisons.compared(found)
    assert words in findings.near_and_far(found, rows, MAIN)
    second = items(findings.findings(found, MAIN, claims.verdicts(found), rows))[1]
    assert ("But near copies, from 5–7 tokens back, are late, too" in second) == (factor > 1)
    whole, near, rest = (
        float(
            next(r["ratio"] for r in rows if r["late"] == f"w32-rope {part}" and "w4" in r["early"])
        )
        for part in ("far", "near", "far / near")
    )
    assert near == pytest.approx(factor, rel=0.1) and rest == pytest.approx(after / 1.05, rel=0.1)
    assert whole == pytest.approx(near * rest, rel=0.01)


def test_a_near_copy_that_is_not_seen_bounds_its_own_pair():
    found = with_near(2.0, 1.05)
    for i, run in enumerate(found):
        if run.arm == "w4-rope" and run.seed == 3:
            zeros = {tables.distances(MAIN)[0]: np.zeros(101)}
            found[i] = run._replace(curve=run.curve | zeros)
    rows = {r["late"]: r for r in comparisons.compared(found) if r["table"] == "near"}
    assert rows["w4-rope far"]["early_unseen"] == 1 and rows["w4-rope far"]["low"] == "0"
    assert rows["w32-rope near"]["low"] == "0" and rows["w32-rope near"]["high"] != "inf"


def test_a_difference_of_local_text_after_the_long_budget_is_post_hoc():
    """With window 32 it is 0.05 nats more."""
    rows = comparisons.post_hoc(made(Planted(local=0.05), 0))
    local = [row for row in rows if row["kind"] == "local"]
    assert [row["positions"] for row in local] == ["rope", "nope"]
    assert all(float(r["low"]) < 0.05 < float(r["high"]) and float(r["p"]) < 0.05 for r in local)
    assert not [
        r for r in comparisons.post_hoc(made(Planted(), 0, sets=("core",))) if r["kind"] == "local"
    ]


def test_a_contrast_chosen_after_the_results_is_named_until_it_has_runs(tmp_path):
    rows = comparisons.post_hoc(made(Planted(), 0, sets=("core",)))
    tables.write(tmp_path / "posthoc.tsv", comparisons.POST_HOC, rows)
    assert "loss on local text has not yet been run" in findings.post_hoc(tmp_path)


def swept(gain):
    """Runs of the sweep; NoPE has `gain` more accuracy at twice the length."""
    found = made(Planted(nope=gain), 0, seeds=SWEEP_SEEDS, sets=("sweep",))
    return [run for run in found]


@pytest.mark.parametrize(("gain", "rates"), [(0.3, len(RATES["nope"])), (0.0, 0)])
def test_nope_and_rope_are_compared_at_equal_rates(gain, rates):
    text = findings.rates_sentence(swept(gain), MAIN)
    assert f"at least 0.05 more at {rates} of {len(RATES['nope'])} rates" in text
    assert "Not yet run" not in text and findings.rates_sentence([], MAIN) == ""
    few = [run for run in swept(gain) if "-lr0.006-" not in run.arm]
    assert "Not yet run with RoPE: 0.006." in findings.rates_sentence(few, MAIN)


def test_runs_of_earlier_code_are_counted():
    found = made(Planted(), 0, sets=("core", "cures"))
    assert "ends of 160 of the 160 runs" in findings.earlier(found, MAIN)
    assert findings.earlier_cures(found).startswith("40 runs of the doubling window")
    now = [run._replace(facts=run.facts | {"end_version": endpoint.VERSION}) for run in found]
    assert findings.earlier(now, MAIN) == findings.earlier_cures(now) == ""
    assert "ends of 1 of the 160 runs" in findings.earlier([found[0], *now[1:]], MAIN)


def test_a_table_of_comparisons_is_summed_up():
    row = dict(table="cures", late="a", early="b", low="1.5", high="2.5")
    rows = [
        row | dict(ratio="2", p="0.01"),
        row | dict(early="c", ratio="0.5", p="0.04"),
        row | dict(ratio="2", p="0.9", low="0", high="inf"),
    ]
    assert findings.summary(rows, "cures") == (
        "Shown (p at most 0.05): a is later than b; a is earlier than c. No difference is shown in 1 of"
        " the 3 rows. The intervals of 1 rows have no finite end: they say nothing."
    )
    assert findings.summary(rows, "controls") == ""


def test_the_control_without_the_shared_layer_is_reported_when_it_has_run():
    assert "has not been run" in findings.without_near([], MAIN)
    found = comparisons.compared(made(Planted(), 0, sets=("core", "alone")))
    text = findings.without_near(found, MAIN)
    assert text.startswith("Steps of window 32 over those of window 4: ") and "(NoPE)" in text


def test_sets_that_lack_runs_are_listed():
    text = findings.unshown(made(Planted(), 0, sets=("core",)), MAIN)
    assert "`core`" not in text and "`long` (0 of 40 runs)" in text
    whole = [
        run
        for name in SETS["main"]
        for run in made(Planted(), 0, seeds=SWEEP_SEEDS if name == "sweep" else SEEDS, sets=(name,))
    ]
    assert findings.unshown(whole, MAIN) == "- All sets have all their runs."


def test_the_cost_is_that_of_the_runs():
    found = made(Planted(), 0, sets=("core",))
    found = [run._replace(facts=run.facts | {"steps": 1500, "cpu_seconds": 30}) for run in found]
    assert "| `core` | 100 | 100 | 150,000 | 50 |" in page.cost_table(found, "main")
    assert "| `long` | 0 | 40 | 0 | 0 |" in page.cost_table(found, "main")


def test_arms_of_the_sweep_are_not_in_the_table_of_arms():
    table = page.arms_table([*made(Planted(), 0, sets=("core",)), *swept(0.0)])
    assert "| w4-rope |" in table and "-lr" not in table


@pytest.mark.parametrize(
    ("seen", "unseen", "shown"),
    [
        ([1250, 800, 900], [], "900"),
        ([1250, 800], [], "1025"),
        ([1250], [5000], "> 3125"),
        ([1250, 800], [5000], "1250"),
        ([1250], [5000, 5000], "> 5000"),
    ],
)
def test_the_median_is_the_middle_or_its_bound(seen, unseen, shown):
    times = [Time(step, False) for step in unseen] + [Time(step, True) for step in seen]
    assert page.median(times) == shown
