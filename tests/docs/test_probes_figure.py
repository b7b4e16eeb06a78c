"""The figure of the probes' page is that of its table, and the page's figures are the table's."""

import importlib.util
import json
import math
import pathlib

DOCS = pathlib.Path(__file__).parents[2] / "docs"
HELD_OUT = 32  # a fifth of 160 prompts


def module():
    spec = importlib.util.spec_from_file_location("probes_figure", DOCS / "probes_figure.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_committed_figure_is_that_of_the_committed_table(tmp_path):
    (tmp_path / "probes.tsv").write_text((DOCS / "probes.tsv").read_text())
    assert module().main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "probes.svg").read_text() == (DOCS / "probes.svg").read_text()


def test_the_page_says_what_the_table_has():
    made = module()
    rows, page = (
        made.rows_of(DOCS / "probes.tsv"),
        " ".join((DOCS / "probes.md").read_text().split()),
    )
    by_probe = {probe: [r for r in rows if r["probe"] == probe] for probe in made.PROBES}
    newest = max(row["step"] for row in rows)
    copied = max(r["copy"] for r in by_probe["retrieval_heads"] if r["step"] == newest)
    assert f"After {newest} steps the demo cannot retrieve" in page
    assert f"the best head copies {copied:.0%} of the answer" in page
    told = [round(row["accuracy"] * HELD_OUT) for row in by_probe["layer_probing"]]
    (guess,) = {round(row["chance"] * HELD_OUT) for row in by_probe["layer_probing"]}
    best, *others = sorted(told, reverse=True)
    assert len(others) == 5 and max(others) <= guess
    assert f"{HELD_OUT}, are held out" in page
    assert f"One layer tells {best} of their needles, where a guess (dashes) tells {guess}" in page
    p = guess / HELD_OUT
    more = [
        math.comb(HELD_OUT, k) * p**k * (1 - p) ** (HELD_OUT - k) for k in range(best, HELD_OUT + 1)
    ]
    assert f"one of six layers has as many in {1 - (1 - sum(more)) ** 6:.0%} of cases" in page
    checkpoints = {row["step"] for row in by_probe["qk_distance"]} - {0}
    assert len(checkpoints) == 9 and "with nine checkpoints" in page
    first = [r for r in by_probe["qk_distance"] if r["step"] == min(checkpoints)]
    moved = {m: [r["relative"] for r in first if r["mixer"] == m] for m in ("swa", "full")}
    mean = {mixer: sum(values) / len(values) for mixer, values in moved.items()}
    assert mean["swa"] > mean["full"] and "of the window layers move more on average than" in page


def test_a_run_gives_the_table(tmp_path):
    """Entries of other probes are left out."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    entries = [
        dict(kind="retrieval_heads", step=5, layer=1, mixer="full", head=0, mass=0.5, copy=1 / 3),
        dict(kind="entropy", step=5, layer=1, mixer="full", head=0, entropy=0.1),
    ]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "run" / "probes.jsonl").write_text(lines)
    made = module()
    made.write(tmp_path / "probes.tsv", tmp_path / "run")
    (row,) = made.rows_of(tmp_path / "probes.tsv")
    assert row == dict(
        probe="retrieval_heads", step=5, layer=1, mixer="full", head=0, mass=0.5, copy=0.3333
    )
