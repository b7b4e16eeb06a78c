"""The sentences and tables of the laziness README, on synthetic runs of each outcome."""

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
    findings,
    page,
    remarks,
    tables,
)
from experiments.large_window_laziness.arms import MAIN, RATES, SEEDS, SETS, SWEEP_SEEDS
from experiments.large_window_laziness.paired import Time
from tests.experiments.planted_runs import NEVER, ORDER, Planted, made


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
    assert words in remarks.near_and_far(found, rows, MAIN)
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
    assert "loss on local text has not yet been run" in remarks.post_hoc(tmp_path)


def swept(gain):
    """Runs of the sweep; NoPE has `gain` more accuracy at twice the length."""
    found = made(Planted(nope=gain), 0, seeds=SWEEP_SEEDS, sets=("sweep",))
    return [run for run in found]


@pytest.mark.parametrize(("gain", "rates"), [(0.3, len(RATES["nope"])), (0.0, 0)])
def test_nope_and_rope_are_compared_at_equal_rates(gain, rates):
    text = remarks.rates_sentence(swept(gain), MAIN)
    assert f"at least 0.05 more at {rates} of {len(RATES['nope'])} rates" in text
    assert "Not yet run" not in text and remarks.rates_sentence([], MAIN) == ""
    slow = [
        run._replace(curve=run.curve | {"step": run.steps * (1 if "-lr0.002-" in run.arm else 2)})
        for run in swept(gain)
    ]
    inside = remarks.rates_sentence(slow, MAIN)
    assert re.search(
        r"RoPE, 0.002, is the best of 6 and lies inside the sweep: 0.001 takes (1.9|2.)", inside
    )
    few = [run for run in swept(gain) if "-lr0.006-" not in run.arm]
    assert "Not yet run with RoPE: 0.006." in remarks.rates_sentence(few, MAIN)


def test_runs_of_earlier_code_are_counted():
    found = made(Planted(), 0, sets=("core", "cures"))
    assert "ends of 160 of the 160 runs" in remarks.earlier(found, MAIN)
    assert remarks.earlier_cures(found).startswith("40 runs of the doubling window")
    now = [run._replace(facts=run.facts | {"end_version": endpoint.VERSION}) for run in found]
    assert remarks.earlier(now, MAIN) == remarks.earlier_cures(now) == ""
    few = remarks.earlier([found[0], *now[1:]], MAIN)  # one of w4
    assert "ends of 1 of the 160 runs" in few and "full" not in few
    assert "saw only 64 tokens" in remarks.earlier(found, MAIN)


def test_a_table_of_comparisons_is_summed_up():
    row = dict(table="cures", late="a", early="b", seeds="10", low="1.5", high="2.5")
    rows = [
        row | dict(ratio="2", p="0.01"),
        row | dict(early="c", ratio="0.5", p="0.04"),
        row | dict(ratio="2", p="0.9", seeds="5", low="0", high="inf"),
    ]
    assert remarks.summary(rows, "cures") == (
        "Shown (p at most 0.05): a is later than b; a is earlier than c. No difference is shown in 1 of"
        " the 3 rows. Of 1 rows with fewer than 6 seeds the range stands in place of an interval, and no"
        " test decides them. 1 rows have no finite end: they say nothing."
    )
    assert remarks.summary(rows, "far") == ""


def test_the_control_without_the_shared_layer_is_reported_when_it_has_run():
    assert "has not been run" in remarks.without_near([], MAIN)
    found = comparisons.compared(made(Planted(), 0, sets=("core", "alone")))
    text = remarks.without_near(found, MAIN)
    assert text.startswith("Steps of window 32 over those of window 4: ") and "(NoPE)" in text


def test_sets_that_lack_runs_are_listed():
    text = remarks.unshown(made(Planted(), 0, sets=("core",)), MAIN)
    assert "`core`" not in text and "`long` (0 of 40 runs)" in text
    whole = [
        run
        for name in SETS["main"]
        for run in made(Planted(), 0, seeds=SWEEP_SEEDS if name == "sweep" else SEEDS, sets=(name,))
    ]
    assert remarks.unshown(whole, MAIN) == "- All sets have all their runs."
    some = [run for run in whole if run.arm != "w4-far-nope" or run.seed != 3]
    assert "`far` (49 of 50 runs)." in remarks.unshown(some, MAIN)  # ten seeds of the other arms


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


def test_the_spread_of_times_is_that_of_their_ratios():
    """Noise of 0.08 in each of two times is 0.11 in ln of their ratio; 10% is 0.8 of that."""
    text = remarks.spread(made(Planted(), 0, sets=("core",)), MAIN)
    low, high = map(float, re.search(r"is ([\d.]+) to ([\d.]+) over", text).groups())
    assert 0.05 < low < 0.113 < high < 0.2
    assert "a delay of 10% is" in text and remarks.spread([], MAIN) == ""
