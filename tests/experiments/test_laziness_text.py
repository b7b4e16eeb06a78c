"""The experiment on real text: its copies, labels, needles and arms; runs end the same if killed."""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import results, tables
from experiments.large_window_laziness.text import __main__ as text
from experiments.large_window_laziness.text import corpus, measure, page, runs, table
from experiments.large_window_laziness.text.arms import REHEARSAL, SMOKE, TEXT, arms
from experiments.large_window_laziness.text.corpus import CONTEXT, Corpus, Spliced
from hybridlm.data.tokenizers import train_bpe
from hybridlm.errors import UserError
from hybridlm.models.params import Model
from hybridlm.probes import Table, mixer_names
from hybridlm.probes.answers import Answers
from hybridlm.probes.heads import RetrievalHead

TINY = SMOKE._replace(heads=4, tokens=1024, measurements=2, source_bytes=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Random text with its tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, 5).tolist()).decode() for _ in range(300)]
    documents = [" ".join(rng.choice(words, 400)) for _ in range(20)]
    tokenizer = train_bpe(documents, TINY.vocab, folder / "tokenizer.json")
    stream = np.concatenate([tokenizer.encode(d) for d in documents]).astype(np.uint16)
    return Corpus(stream[4096:], stream[:4096], tokenizer, {"digest": "made"})


@pytest.mark.parametrize("scale", [TEXT, REHEARSAL], ids=lambda scale: scale.name)
def test_copies_stand_where_they_say_and_do_not_touch(scale):
    """They fill at most 15 % of a sequence, and nearly that."""
    shares, sizes = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tokens, distance, age = corpus.splice(
            rng.integers(0, 4096, scale.length, dtype=np.int32), scale, rng
        )
        (copied,) = np.nonzero(age >= 0)
        assert (tokens[copied] == tokens[copied - distance[copied]]).all()
        starts = np.flatnonzero(age == 0)
        ends = np.array([s + 1 + np.argmax(np.append(age[s + 1 :], -1) <= 0) for s in starts])
        sizes += (ends - starts).tolist()
        assert (starts[1:] - ends[:-1] >= CONTEXT).all()
        assert (distance[starts] >= ends - starts).all()  # a copy does not copy itself
        shares.append(len(copied) / scale.length)
    assert max(shares) <= corpus.SPLICED + 1 / scale.length and np.mean(shares) > 0.12
    assert scale.span[0] == min(sizes) and max(sizes) <= scale.span[1]


def test_distances_are_log_uniform():
    """Each octave from the longest copy to half a sequence has as many copies, to three deviations."""
    rng, octaves = np.random.default_rng(1), np.zeros(4)
    for _ in range(400):
        made = corpus.splice(np.arange(TEXT.length, dtype=np.int32), TEXT, rng)
        at = np.flatnonzero(made.age_NT == 0)
        octave = np.log2(made.distance_NT[at] / 64)
        octaves += np.histogram(octave, bins=[0, 1, 2, 3, 4])[0]
    expected = octaves.mean()
    assert np.abs(octaves - expected).max() < 3 * np.sqrt(expected)


def test_labels_are_those_of_a_search_token_by_token():
    rng = np.random.default_rng(2)
    scale = TINY._replace(length=200)
    rows = [corpus.splice(rng.integers(0, 3, 200, dtype=np.int32), scale, rng) for _ in range(3)]
    made = Spliced(*(np.stack(parts) for parts in zip(*rows)))
    found = corpus.labels(made)
    for tokens, nearest in zip(made.tokens_NT, found.nearest_NT):
        for t in range(len(tokens)):
            own = tokens[t - CONTEXT : t + 1].tolist()
            places = [s for s in range(CONTEXT, t) if tokens[s - CONTEXT : s + 1].tolist() == own]
            assert nearest[t] == (t - places[-1] if places and t >= CONTEXT else 0)
    together = sum(x.astype(int) for x in (found.spliced_NT, found.natural_NT, found.plain_NT))
    assert together.max() == 1
    inside = made.age_NT >= 0
    assert not (found.natural_NT | found.plain_NT)[inside].any()
    assert found.spliced_NT.any() and found.natural_NT.any() and not found.spliced_NT[~inside].any()


def test_a_seed_gives_all_rows_once_in_an_epoch(made):
    rows = len(made.train) // TINY.length
    assert sorted(corpus._order(rows, 5, 0)) == list(range(rows))
    one, whole = corpus.training(made, TINY, 5, 3, 1), corpus.training(made, TINY, 5, 0, 6)
    for a, b in zip(one, whole):
        np.testing.assert_array_equal(a[0], b[3])
    other = corpus.training(made, TINY, 6, 0, 6)
    assert (other.tokens_NT != whole.tokens_NT).any()
    next_epoch = corpus.training(made, TINY, 5, rows - 1, 2)
    assert next_epoch.tokens_NT.shape == (2, TINY.length)


def test_the_gain_is_that_of_a_repeat_over_its_first_place():
    """Repeats cost 1 nat, plain tokens 3; a source that is a repeat itself does not count."""
    rng = np.random.default_rng(3)
    row = rng.permutation(200).astype(np.int32)
    row[50:60], row[100:110], row[180:190] = row[20:30], row[20:30], row[70:80]
    made = Spliced(row[None], np.zeros((1, 200), np.int32), np.full((1, 200), -1))
    found = corpus.labels(made)
    nll = np.where(found.natural_NT, 1.0, 3.0)
    bins = ((16, 31), (32, 63), (64, 127))
    result = measure._by_distance(nll, found.natural_NT, found, found.natural_NT, bins)
    assert result["tokens"] == [6, 6, 6] and result["accuracy"] == [1, 1, 1]
    assert result["gain"][0] == result["gain"][2] == 2
    assert np.isnan(result["gain"][1])  # 100 repeats 50, which repeats 20


def test_needles_and_copies_are_asked_at_their_distances(made):
    held_out = measure.HeldOut.of(made, TINY)
    for (near, far), prompts in zip(TINY.bins[1:], held_out.needles, strict=True):
        for tokens, rows, needle in zip(prompts.tokens_NT, prompts.rows_NQ, prompts.needle_NT):
            answer, (places,) = tokens[rows[rows >= 0] + 1], np.nonzero(needle)
            np.testing.assert_array_equal(tokens[places], answer)
            assert near <= rows[0] + 1 - places[0] <= far
            assert made.tokenizer.decode(answer).isdigit()
    near, far = TINY.bins[-1]
    copies = held_out.copies
    for tokens, rows, needle in zip(copies.tokens_NT, copies.rows_NQ, copies.needle_NT):
        answer, (places,) = tokens[rows[rows >= 0] + 1], np.nonzero(needle)
        np.testing.assert_array_equal(tokens[places], answer)
        assert near <= rows[0] + 1 - places[0] <= far


def test_too_little_held_out_text_is_refused():
    near, far = TINY.bins[-1]
    rows = Spliced(*(np.zeros((2, TINY.length), np.int32) for _ in range(2)), np.full((2, 64), -1))
    with pytest.raises(UserError, match=f"no copy in the 2 .* is {near} to {far} tokens from"):
        measure._copies(rows, corpus.labels(rows), TINY)


@pytest.mark.parametrize(("seconds", "count"), [(60.0, 24), (450.0, 12)])
def test_a_plan_of_another_budget_is_refused(tmp_path, seconds, count):
    plan = {"steps": 70, "seconds": 450.0, "runs": 24}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert text.steps_of(tmp_path, TINY, None, 450, 24) == 70
    with pytest.raises(
        UserError, match=rf"holds a plan of 24 runs in 450 s, not {count} in {seconds:g} s"
    ):
        text.steps_of(tmp_path, TINY, None, seconds, count)


def test_the_arms_are_six_of_four_seeds_and_0_9_billion_tokens():
    names = [arm.name for arm in arms(TEXT)]
    assert sorted(names) == sorted(
        ["w16-rope", "w128-rope", "w1024-rope", "full-rope", "w128-nope", "w1024-nope"]
    )
    tokens = len(names) * len(text.SEEDS) * TEXT.steps * TEXT.batch * TEXT.length
    assert tokens == pytest.approx(0.91e9, rel=0.01)
    counts = {Model.of(arm.model()).count() - TEXT.vocab * TEXT.width for arm in arms(TEXT)}
    assert len(counts) == 1 and counts.pop() == pytest.approx(6.4e6, rel=0.01)
    small = Model.of(arms(REHEARSAL)[0].model()).count() - REHEARSAL.vocab * REHEARSAL.width
    assert small == pytest.approx(0.64e6, rel=0.01)
    assert len({repr(arm.model()) for arm in arms(TEXT)}) == 2  # two programs


def test_a_seed_pairs_parameters_and_sequences(made):
    pair = [arms(TINY)[0], arms(TINY)[2]]
    states = [jax.tree.leaves(runs.program_of(arm).init(jax.random.key(3))) for arm in pair]
    for a, b in zip(*states, strict=True):
        np.testing.assert_array_equal(a, b)
    batches = [runs.batch(made, arm, 3, 1, 8) for arm in pair]
    np.testing.assert_array_equal(batches[0]["tokens"], batches[1]["tokens"])
    assert batches[0]["window"] != batches[1]["window"]


def test_the_dry_run_counts_every_run(capsys):
    assert text.main(["--workdir", "runs/t", "--dry_run", "--seeds", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 12 and [line["run"] for line in lines][0] == "w16-rope/0"
    assert {line["steps"] for line in lines} == {TEXT.steps}
    assert text.main(["--workdir", "runs/t", "--arms", "w3-rope"]) == 2
    assert "there is no 'w3-rope'" in capsys.readouterr().err


class Stop(Exception):
    pass


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_the_same_and_fills_the_tables(made, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0.0)
    held_out, arm = measure.HeldOut.of(made, TINY), arms(TINY)[2]
    lines = []

    def killed(line):
        lines.append(line)
        if len(lines) == 3:
            raise Stop

    whole, parts = tmp_path / "whole" / arm.name / "0", tmp_path / "parts" / arm.name / "0"
    runs.run(arm, 0, whole, held_out, 8, lambda line: None)
    with pytest.raises(Stop):
        runs.run(arm, 0, parts, held_out, 8, killed)
    assert (parts / "state.npz").exists()
    runs.run(arm, 0, parts, held_out, 8, lambda line: None)
    ends, curves, params = [], [], []
    for folder in (whole, parts):
        ends.append(json.loads((folder / "done.json").read_text())["end"])
        records = [json.loads(line) for line in (folder / "curve.jsonl").open()]
        curves.append([{n: x for n, x in r.items() if n != "wall_seconds"} for r in records])
        params.append(dict(np.load(folder / "params.npz")))
    assert str(ends[0]) == str(ends[1]) and str(curves[0]) == str(curves[1])  # NaN equals NaN
    for name, x in params[0].items():
        np.testing.assert_array_equal(x, params[1][name])
    assert [record["step"] for record in curves[0]] == [0, 4, 8]
    with pytest.raises(UserError, match="holds a run of other settings"):
        runs.run(arm, 0, whole, held_out, 9)
    rows, facts = table.collect(tmp_path / "whole", TINY)
    assert table.write_tables(tmp_path / "whole", TINY, (rows, facts)) == 1
    assert {layer for layer, _ in ends[0]["masked_heads"]} <= set(arm.searched)
    assert set(rows[0]) == set(table.curve_columns(TINY))
    assert set(facts[0]) == set(table.run_columns(TINY))
    assert all(0 <= facts[0][f"masked_{name}"] <= 1 for name in ("none", "retrieval", "random"))


@pytest.mark.slow
def test_steps_are_scaled_to_the_budget(made):
    held_out = measure.HeldOut.of(made, TINY)
    plan = runs.measured_steps(held_out, arms(TINY)[0], 2, seconds=1e4, trial=0.5)
    assert plan["steps"] == TINY.steps
    few = runs.measured_steps(held_out, arms(TINY)[0], 10**6, seconds=1.5, trial=0.5)
    assert few["steps"] == TINY.measurements
    longer = held_out._replace(scale=TINY._replace(tokens=10**12))
    arm = arms(TINY)[0]._replace(scale=longer.scale)
    plan = runs.measured_steps(longer, arm, 10, seconds=100.5, trial=0.5)
    assert plan["steps"] * plan["seconds_a_step"] == pytest.approx(7.5, rel=0.05)


@pytest.mark.slow
def test_the_corpus_is_the_same_when_made_again(tmp_path):
    """From this machine's packages; no file is in both splits."""
    scale = TINY._replace(source_bytes=400_000)
    first, again = (corpus.prepare(tmp_path / x, scale) for x in "ab")
    assert first.facts == again.facts and first.facts["files"] > 10
    assert first.train.max() < scale.vocab
    assert corpus.prepare(tmp_path / "a", scale).facts == first.facts
    with pytest.raises(UserError, match="text of another scale"):
        corpus.prepare(tmp_path / "a", TEXT)


@pytest.mark.parametrize(("which", "layers"), [("w8-rope", {1}), ("full-rope", {0, 1})])
def test_masked_heads_are_those_of_layers_that_see_whole_sequences(
    made, monkeypatch, which, layers
):
    """The best head of all is a window layer's, and random ones are drawn from the same layers."""
    (arm,) = [arm for arm in arms(TINY) if arm.name == which]
    model, seen = Model.of(arm.model()), {}
    assert set(arm.searched) == layers
    assert all(arm.is_full or mixer_names(model)[layer] == "full" for layer in arm.searched)
    scores = tuple(
        RetrievalHead(layer, name, head, mass=1 - layer - head / 10, copy=0.5, samples=2)
        for layer, name in enumerate(("local", "full"))
        for head in range(TINY.heads)
    )

    def masking(model, params, prompts, heads, **options):
        seen.update(options, heads=heads)
        return ()

    monkeypatch.setattr(measure, "receptive_field", lambda *args, **options: ())
    monkeypatch.setattr(measure, "answers", lambda *args, **options: Answers(1.0, 0.5, 0.5, 1.0))
    monkeypatch.setattr(measure, "retrieval_heads", lambda *a, **o: Table("", "", "", scores))
    monkeypatch.setattr(measure, "head_masking", masking)
    monkeypatch.setattr(measure, "_longer", lambda *args: {})
    measure.at_end(measure.HeldOut.of(made, TINY), arm, model, {})
    assert set(seen["layers"]) == layers and {head.layer for head in seen["heads"]} == {min(layers)}
    assert 0 < len(seen["heads"]) <= len(layers) * TINY.heads // 2


def planted(folder, gain, seeds=4):
    """Tables of all arms, where w1024 has `gain` nats more on far copies than w16, and full none."""
    ends, lines = [], []
    for arm in arms(TEXT):
        for seed in range(seeds):
            key = {"arm": arm.name, "seed": seed}
            figures = {name: 1.0 for name in table.curve_columns(TEXT)[3:]}
            far = table.distances(TEXT)[-1]
            figures[f"spliced_gain_{far}"] = 1.0 + seed / 100 + gain * (arm.window == 1024)
            lines += [{**key, "step": step, **figures, "plain_nll": 2.0 + step} for step in (0, 10)]
            facts = {name: 0.5 for name in table.run_columns(TEXT)[2:]}
            facts |= {"formed": int(arm.window != 16), "formed_step": 100 + seed, "steps": 1159}
            facts |= {"plain_nll": 2.0, "full_sees_16": 0.1, "masked_none": 0.9}
            facts["longer_gain"] = 0.7 if arm.positions == "nope" else 0.4
            ends.append({**key, **facts})
    tables.write(folder / "text_curves.tsv", table.curve_columns(TEXT), lines)
    tables.write(folder / "text_runs.tsv", table.run_columns(TEXT), ends)


@pytest.mark.parametrize(
    ("gain", "words"), [(-0.5, "below 0 in all"), (0.5, "above 0 in all"), (0.0, "of either sign")]
)
def test_the_page_says_what_all_seeds_on_real_text_have_in_common(tmp_path, gain, words):
    planted(tmp_path, gain)
    said = page.sentences(tmp_path)
    assert said.startswith("24 of 24 runs have been made, of 1,159 steps.")
    assert "w16-rope > 102 (0 of 4 runs formed), w1024-rope 102," in said
    first = said.split("The gain on these copies at the end, RoPE: ")[1]
    assert first.startswith(f"window 1024 less window 16 {gain:.3g} nats (4 seeds: ")
    assert words in first.split(";")[1]
    assert "window 128 0.3 nats (4 seeds: 0.3 to 0.3; above 0 in all)" in said
    assert "full layers of window 16 0.8 (4 seeds: 0.8 to 0.8; above 0 in all)" in said
    assert said.endswith("4 seeds: not decided by test (the least p is 0.125).")
    assert page.rows(tmp_path).count(
        "\n"
    ) == 1 + 24 and "| w16-rope | 0 | 1159 | > 100 |" in page.rows(tmp_path)


def test_the_page_says_that_real_text_has_not_been_run(tmp_path):
    assert page.sentences(tmp_path).startswith("Not run: no accelerator was available. The CPU reh")
    planted(tmp_path, 0.5, seeds=1)
    assert page.sentences(tmp_path).startswith("6 of 6 runs")


def test_the_records_of_a_visit_give_the_tables_and_the_pages(tmp_path, monkeypatch, capsys):
    """None stands for what has no tokens; a resumed run's repeated measurement counts once."""
    bins = len(TEXT.bins)
    by_distance = dict(gain=[1.0] * bins, accuracy=[0.9] * (bins - 1) + [None], tokens=[1] * bins)
    heads = [[0, 0, 0.9, 0.1, 0.5], [1, 2, 0.4, 0.3, 0.2]]  # the first is a window's
    line = dict(kind="text", arm="w16-rope", seed=1, steps=10, plain_nll=2.0, heads=heads)
    line |= dict(spliced=by_distance, natural=by_distance)
    end = dict(kind="text end", arm="w16-rope", seed=1, steps=10)
    sees = {str(window): 0.5 for window in (*TEXT.windows, TEXT.length)}
    end |= dict(
        restricted=dict(full=sees, local=sees), masked=dict(none=1.0, retrieval=0.2, random=0.8)
    )
    end |= dict(needles=dict(nll=[1.0] * (bins - 1), accuracy=[0.5] * (bins - 1)))
    end["longer"] = dict(plain_nll_within=2.0, plain_nll_beyond=2.1)
    end["longer"]["spliced"] = dict(gain=[0.5], accuracy=[0.1], tokens=[5])
    other = dict(line, arm="full-rope", step=0, wall_seconds=1.0)  # without an end
    records = [dict(line, step=0, wall_seconds=1.0), other]
    records += [dict(line, step=10, wall_seconds=x) for x in (5.0, 6.0)] + [dict(kind="card"), end]
    file, readme, results_ = (
        tmp_path / "results.jsonl",
        tmp_path / "README.md",
        tmp_path / "results",
    )
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    readme.write_text("<!-- text main -->\n<!-- end of text main -->\n")
    shutil.copytree(results.claims.RESULTS / "main", results_ / "main")
    monkeypatch.setattr(results.claims, "RESULTS", results_)
    monkeypatch.setattr(results, "PAGES", (readme,))
    monkeypatch.setattr(
        results, "blocks", lambda scale, _: dict(text=page.sentences(results_ / "text"))
    )
    assert text.main(["--visit", str(file), "--publish"]) == 0
    assert "1 runs are complete" in capsys.readouterr().out
    (row,) = tables.read(results_ / "text" / "text_runs.tsv")
    assert (row["seed"], row["formed"], row["wall_seconds"]) == ("1", "0", "6.0")
    curve = tables.read(results_ / "text" / "text_curves.tsv")
    assert [(r["step"], r["mass"]) for r in curve] == [("0", "0.4"), ("10", "0.4")]
    assert "1 of 6 runs have been made, of 10 steps." in readme.read_text()
    file.write_text(json.dumps(dict(kind="card")) + "\n")
    with pytest.raises(UserError, match="no complete run on real text"):
        text.main(["--visit", str(file)])
    with pytest.raises(UserError, match="needs the --workdir"):
        text.main([])
