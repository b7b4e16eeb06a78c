"""Runs are paired by seed, stop after retrieval, and end the same if killed and resumed."""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import arms, claims, endpoint, measure, run, runs, tables
from experiments.large_window_laziness.arms import ARMS, SETS
from hybridlm.errors import UserError
from hybridlm.models.params import Model

SIZES = dict(EACH=8, PROMPTS=2, FAR_TOKENS=6, AT_ONCE=256)


@pytest.fixture
def small(monkeypatch):
    """Makes measurements take seconds."""
    cached = (measure._held_out, measure.needles, measure.far_sequences)
    for name, value in SIZES.items():
        monkeypatch.setattr(measure, name, value)
    monkeypatch.setattr(endpoint, "FAR_TOKENS", 6)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def curve(folder):
    kept = [json.loads(line) for line in (folder / "curve.jsonl").open()]
    return [{k: v for k, v in r.items() if not k.endswith("seconds")} for r in kept]


class Stop(Exception):
    pass


def quick(name):
    """An arm with short batches and a measurement every second step."""
    arm = ARMS["main"][name]
    return dataclasses.replace(arm, scale=arm.scale._replace(batch=2, every=2))


def silent(line):
    pass


def test_a_killed_and_resumed_run_ends_the_same(small, tmp_path):
    arm = quick("w4-nope")
    runs.run(arm, 0, tmp_path / "whole", 4, silent, ends=False)
    lines = []

    def killed(line):
        lines.append(line)
        if len(lines) == 2:
            raise Stop

    with pytest.raises(Stop):
        runs.run(arm, 0, tmp_path / "parts", 4, killed, ends=False)
    with pytest.raises(UserError, match="holds a run of 4 steps, not of 6"):
        runs.run(arm, 0, tmp_path / "parts", 6, silent, ends=False)
    runs.run(arm, 0, tmp_path / "parts", 4, silent, ends=False)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert [record["step"] for record in curve(tmp_path / "whole")] == [0, 2, 4]
    last = curve(tmp_path / "whole")[-1]
    assert len(last["heads"]) == (arms.MAIN.depth + 1) * arms.MAIN.heads
    (tmp_path / "main" / "w4-nope").mkdir(parents=True)
    (tmp_path / "parts").rename(tmp_path / "main" / "w4-nope" / "0")
    rows, (facts,), influences = tables.collect(tmp_path / "main")
    assert len(rows) == 3 and facts["formed"] == 0 and facts["formed_step"] == 4
    assert facts["best_layer"] in (2, 4) and influences == []  # the full layers
    other = dataclasses.replace(arm, lr=2 * arm.lr)
    with pytest.raises(UserError, match="holds a run of other settings than w4-nope has now"):
        runs.run(other, 0, tmp_path / "main" / "w4-nope" / "0", 4, silent)
    words = ["--workdir", str(tmp_path), "--scale", "main"]
    with pytest.raises(UserError, match="other settings"):  # those without `quick`
        run.main([*words, "--arms", "w4-nope", "--seeds", "1"])
    settings = tmp_path / "main" / "w4-nope" / "0" / "settings.json"
    for _ in range(2):  # without settings, the end has the budget
        with pytest.raises(UserError, match="holds a run of 4 steps, not of 6"):
            runs.run(arm, 0, settings.parent, 6, silent)
        settings.unlink(missing_ok=True)
    with pytest.raises(UserError, match="holds a run of 4 steps, not of 5,000"):
        run.main([*words, "--arms", "w4-nope", "--seeds", "1"])
    assert run.main([*words, "--arms", "w4-nope", "--seeds", "1", "--steps", "4"]) == 0


@pytest.mark.slow
def test_a_longer_arm_goes_on_with_the_shorter_ones_run(small, tmp_path):
    """And ends as if it had been trained from the start; its end has every figure."""
    short, longer = quick("w32-rope"), quick("w32-long-rope")
    runs.run(short, 0, tmp_path / "a" / short.name / "0", 4, silent, ends=False)
    runs.run(longer, 0, tmp_path / "a" / longer.name / "0", 6, silent)
    runs.run(longer, 0, tmp_path / "b" / longer.name / "0", 6, silent)
    ends = [tmp_path / x / longer.name / "0" for x in "ab"]
    assert curve(ends[0]) == curve(ends[1])
    facts = [json.loads((end / "done.json").read_text())["end"] for end in ends]
    assert facts[0] == facts[1]
    assert set(facts[0]["restricted"]["full"]) == {"4", "8", "16", "32", "64"}
    assert set(facts[0]["masked"]) == {"none", "retrieval", "random"}
    assert set(facts[0]["lengths"]) == {"1", "2", "4"} and facts[0]["influence"]
    _, (row,), _ = tables.collect(tmp_path / "b")
    assert set(row) == set(tables.run_columns())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gdn-nope", "nha4x16-rope", "lightning-conv-rope", "w16-alone-rope", "full-rope"]
)
def test_every_kind_of_arm_has_an_end(small, tmp_path, name):
    """Recurrences, slots, a convolution as the first layer, and none; with one bound each."""
    arm = quick(name)
    arm = dataclasses.replace(arm, scale=arm.scale._replace(windows=(4, 64)))
    runs.run(arm, 0, tmp_path / "main" / name / "0", 2, silent)
    rows, (facts,), influences = tables.collect(tmp_path / "main", arm.scale)
    assert [row["step"] for row in rows] == [0, 2] and influences
    full = [i for i, layer in enumerate(arm.model().layout.names) if layer == "full"]
    assert facts["best_layer"] in full
    for column in ("full_sees_4", "local_sees_4", "masked_retrieval", "length_4x"):
        assert 0 <= facts[column] <= 1


def test_ends_are_measured_again_without_training(small, tmp_path, monkeypatch, capsys):
    """From the run's own parameters, where earlier code measured them; all else stays."""
    arm, measured = quick("w4-nope"), []

    def end_of(arm, model, params):
        measured.append([np.asarray(x) for x in jax.tree.leaves(params)])
        sees = {group: {"4": 0.5} for group in ("full", "local")}
        masked = {"none": 1.0, "retrieval": 0.0, "random": len(measured) / 10}
        found = {"restricted": sees, "masked": masked, "lengths": {"1": 1.0}}
        return {"version": endpoint.VERSION, **found, "influence": [[1, 2, 0.5]]}

    monkeypatch.setattr(runs, "endpoint", end_of)
    folder = tmp_path / "main" / arm.name / "0"
    runs.run(arm, 0, folder, 4, silent)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert not runs.measure_end(arm, folder) and len(measured) == 1
    facts = json.loads(before["done.json"])
    del facts["end"]["version"]
    (folder / "done.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="has an end of earlier measurements: measure it again"):
        tables.collect(tmp_path / "main")
    assert runs.measure_end(arm, folder) and len(measured) == 2
    for a, b in zip(*measured, strict=True):
        np.testing.assert_array_equal(a, b)
    again = json.loads((folder / "done.json").read_text())
    assert again.pop("end")["masked"]["random"] == 0.2
    assert again == {name: x for name, x in facts.items() if name != "end"}
    for name in {*before} - {"done.json"}:
        assert (folder / name).read_bytes() == before[name]
    _, (row,), _ = tables.collect(tmp_path / "main")
    assert row["masked_random"] == 0.2 and row["end_version"] == endpoint.VERSION
    monkeypatch.setattr(run, "ARMS", {"main": {**ARMS["main"], arm.name: arm}})
    words = ["--workdir", str(tmp_path), "--arms", "w4-nope,w8-nope", "--seeds", "2", "--ends"]
    assert run.main(words) == 0
    assert "0 of 1 complete runs need a new end" in capsys.readouterr().out
    with pytest.raises(UserError, match="no complete run of w8-nope"):
        runs.measure_end(ARMS["main"]["w8-nope"], tmp_path / "main" / "w8-nope" / "0")


def test_a_seed_pairs_parameters_and_data():
    """Windows and positions of one seed share all parameters and batches; seeds do not."""
    core = [ARMS["main"][name] for name in ("w4-rope", "full-rope", "w32-nope")]
    states = [jax.tree.leaves(runs.program_of(arm).init(jax.random.key(3))) for arm in core]
    batches = [runs.batch(arm, 3, 7, 4) for arm in core]
    for state, batch in zip(states[1:], batches[1:]):
        for a, b in zip(states[0], state, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(batch["tokens"], batches[0]["tokens"])
    assert (runs.batch(core[0], 4, 7, 4)["tokens"] != batches[0]["tokens"]).any()


def test_a_run_stops_300_steps_after_retrieval_is_confirmed_and_its_schedule_has_ended():
    def curve(far):
        return [{"step": 50 * i, "accuracy": [1.0, x]} for i, x in enumerate(far)]

    early, late = curve([0, 0.6, 0.4, 0.6, 0.7]), curve([0] * 60 + [0.6, 0.7])
    for name in ("w4-rope", "stochastic-rope", "dropout-nope"):
        assert runs.last_step(curve([0, 0.2, 0.6]), ARMS["main"][name], 5000) == np.inf
        assert runs.last_step(early, ARMS["main"][name], 5000) == 150 + 50 + 300
    arm = ARMS["main"]["curriculum-rope"]
    end = int(runs.last_step(early, arm, 5000)) - 300
    assert [arm.window(step, 5000, 0) for step in (end - 1, end)] == [16, 32]
    assert runs.last_step(early, arm, 1000) == 500 + 300
    assert runs.last_step(late, arm, 5000) == 3000 + 50 + 300
    assert runs.last_step(curve([0] * 60), arm, 5000) == np.inf


def test_dropout_leaves_the_shared_layer_as_it_is(small):
    """A step of window 1 is one of layers of window 1 in the window's place, below the same `near`."""
    arm = ARMS["main"]["dropout-rope"]
    model, init, _ = runs.program_of(arm)
    params = init(jax.random.key(3))["params"]
    plain = runs.program_of(ARMS["main"]["w32-rope"])
    for a, b in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(plain.init(jax.random.key(3))["params"]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    batch = measure.stream.batch(measure.stream.sequences(arm.scale.task, 0, 0, 2))
    found, _ = measure.tokens(model, params, batch, 1)
    mixers = plain.model.config.mixers
    narrow = {**mixers, "local": dataclasses.replace(mixers["local"], window=1)}
    expected = Model.of(dataclasses.replace(plain.model.config, mixers=narrow))
    np.testing.assert_array_equal(found, measure.tokens(expected, params, batch, arms.NEAR)[0])
    both_narrow, _ = measure.tokens(plain.model, params, batch, 1)
    assert (found != both_narrow).any()


@pytest.mark.parametrize("scale", arms.SCALES.values(), ids=list(arms.SCALES))
def test_needles_mark_every_place_of_the_answer(scale):
    """The nearest lies at the largest distances; no unmarked token equals one of the answer's."""
    made, far = measure.needles(scale.task, 8, None), scale.task.bins[-1][0]
    for tokens, rows, needle in zip(made.tokens_NT, made.rows_NQ, made.needle_NT):
        query, answer = rows[0], tokens[rows[rows >= 0] + 1]
        (places,) = np.nonzero(needle)
        assert set(tokens[places]) == set(answer)
        assert not np.isin(tokens[:query][~needle[:query]], answer).any()
        assert query - places.max() + len(answer) >= far
    assert far >= scale.large


@pytest.mark.parametrize("scale", arms.SCALES.values(), ids=list(arms.SCALES))
def test_far_accuracy_has_a_thousand_tokens(scale):
    held_out, count = measure._held_out(scale.task)
    kind, distance = measure.targets(held_out)
    far = (kind == measure.stream.COPIED_TOKEN) & (distance >= scale.task.bins[-1][0])
    assert far.sum() >= 1000 and count == measure.EACH


def test_one_program_serves_all_windows():
    windowed = [arm for s in ("core", "cures", "long") for arm in SETS["main"][s]]
    programs = [{repr((a.model(), a.lr)) for a in windowed if a.keeps_near == x} for x in (0, 1)]
    assert list(map(len, programs)) == [2, 2]  # RoPE and NoPE
    assert {arm.name for arm in windowed if arm.keeps_near} == {"dropout-rope", "dropout-nope"}


def test_full_attention_in_the_windows_place_sees_all_of_longer_sequences(small):
    """At 4 times the length it is as without a window, and the shared layer still sees 4 tokens."""
    arm = ARMS["main"]["full-rope"]
    model, init, _ = runs.program_of(arm)
    params = init(jax.random.key(0))["params"]
    mixers = model.config.mixers
    unbound = dataclasses.replace(mixers["local"], window=None)
    config = dataclasses.replace(model.config, mixers={**mixers, "local": unbound})
    task = arm.scale.task._replace(length=max(arms.LENGTHS) * arm.scale.task.length)
    batch = measure.stream.batch(measure.stream.sequences(task, 0, 0, 2))
    found, _ = measure.tokens(model, params, batch, arm.final)
    expected, _ = measure.tokens(Model.of(config), params, batch, arm.scale.whole)
    np.testing.assert_array_equal(found, expected)
    bounded, _ = measure.tokens(model, params, batch, arm.scale.task.length)
    reach = arm.scale.task.length
    np.testing.assert_array_equal(found[:, :reach], bounded[:, :reach])
    assert (found[:, reach:] != bounded[:, reach:]).any()


def test_the_best_head_of_full_attention_may_stand_in_the_windows_place(tmp_path):
    """And only there: a head of window 32 is not sought in its window."""
    best = {}
    for name in ("full-rope", "w32-rope"):
        folder = tmp_path / name / "0"
        folder.mkdir(parents=True)
        layers = ARMS["main"][name].model().layout.names
        heads = [[i, h, 0.0, 0.0, 0.5] for i in range(len(layers)) for h in range(2)]
        heads[layers.index("local") * 2 + 1][2] = 0.9
        heads[layers.index("full") * 2][2] = 0.2
        curve = {"local_nll": 1.0, "copied_nll": 1.0, "far_tokens": 1000, "heads": heads}
        curve |= {"accuracy": [0.0] * len(arms.MAIN.task.bins)}
        curve |= {"qk": [[layer, h, layer / 10] for layer, h, *_ in heads]}
        records = [json.dumps({**curve, "step": step}) for step in (0, 50)]
        (folder / "curve.jsonl").write_text("\n".join(records) + "\n")
        facts = {"arm": name, "seed": 0, "steps": 50, "budget": 50, "end": None}
        facts |= {"cpu_seconds": 1.0, "wall_seconds": 1.0}
        (folder / "done.json").write_text(json.dumps(facts))
        rows, (run_row,), _ = tables.collect(tmp_path)
        best[name] = run_row["best_layer"], rows[-1]["mass"], rows[-1]["qk_distance"]
        (folder / "done.json").unlink()
    names = ARMS["main"]["full-rope"].model().layout.names
    assert best["full-rope"] == (names.index("local"), 0.9, names.index("local") / 10)
    assert best["w32-rope"] == (names.index("full"), 0.2, names.index("full") / 10)


def test_weights_are_kept_of_the_layers_that_are_searched():
    for name, count in (("full-nope", 4), ("w32-nope", 2), ("gdn-nope", 2)):
        arm = ARMS["main"][name]
        assert len(arm.searched) == count
        model, init, _ = runs.program_of(arm)
        params = init(jax.random.key(0))["params"]
        weights = runs._weights(arm, model, params)
        assert len(weights) == 2 * count
        ((*rows,),) = runs._distances(arm, model, params, [weights])
        assert rows == [[i, head, 0.0] for i in arm.searched for head in range(2)]


def test_a_window_beyond_the_sequence_changes_no_training(small):
    """The settings of a folder rely on it: with one of its length, all bits are the same."""
    held_out = measure.stream.batch(measure.stream.sequences(arms.MAIN.task, 9, 0, 2))
    now = {name: quick(name) for name in ("w32-rope", "full-rope")}
    length = arms.MAIN.task.length
    found = []
    for windows in ({}, {"window": length}):
        for arm in now.values():
            final = min(arm.final, windows.get("window", arm.final))
            model, init, train_step = runs.program_of(
                dataclasses.replace(arm, local={**arm.local, **windows})
            )
            state = init(jax.random.key(0))
            for step in range(3):
                state, _ = train_step(state, runs.batch(arm, 0, step, final))
            nll_NT, _ = measure.tokens(model, state["params"], held_out, final)
            found.append([*jax.tree.leaves(state), nll_NT])
    assert now["full-rope"].final > length
    for name, after, before in zip(now, found, found[len(now) :], strict=False):
        for a, b in zip(after, before, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    assert (found[0][-1] != found[1][-1]).any()  # windows do matter


def test_a_run_of_before_full_attention_saw_longer_sequences_goes_on(tmp_path):
    """A window beyond the sequence changes no training, so that the folders of windows stay."""
    for name, refused in (("w32-rope", False), ("gdn-rope", False), ("full-rope", True)):
        arm = ARMS["main"][name]
        window = arm.scale.task.length
        before = (
            arm
            if arm.final is None
            else dataclasses.replace(
                arm, local={**arm.local, "window": window}, final=min(arm.final, window)
            )
        )
        written = json.dumps(runs._settings(before))
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text(written)
        if refused:
            with pytest.raises(UserError, match="other settings than full-rope has now"):
                runs.check_settings(arm, tmp_path / name)
        else:
            runs.check_settings(arm, tmp_path / name)
            assert repr(before.model()) in json.loads(written)["model"]


def test_the_stack_reaches_further_than_a_window():
    """A first layer of 4, and two windows: 3 and twice 31 tokens, and the query."""
    reach = {name: ARMS["main"][name].stack_reach for name in ARMS["main"]}
    assert reach["w4-rope"] == 3 + 2 * 3 + 1 and reach["w16-rope"] == 3 + 2 * 15 + 1
    assert reach["w16-alone-rope"] == 2 * 15 + 1
    assert reach["w32-rope"] == reach["full-rope"] == reach["gdn-rope"] == 64


def test_schedules_end_at_the_large_window():
    curriculum = arms.curriculum(4, 128)
    seen = [curriculum(step, 1000, 0) for step in range(1000)]
    assert seen[0] == 4 and set(seen) == {4, 8, 16, 32, 64, 128} and seen == sorted(seen)
    assert seen[500:] == [128] * 500
    drawn = [arms.stochastic(4, 128)(step, 1000, 3) for step in range(1000)]
    assert set(drawn) == {4, 128} and 400 < drawn.count(4) < 600
    assert drawn == [arms.stochastic(4, 128)(step, 1000, 3) for step in range(1000)]
    assert set(arms.dropout(128)(step, 1000, 3) for step in range(50)) == {1, 128}


def test_the_sweep_goes_beyond_the_rate_of_rope():
    for positions, rates in arms.RATES.items():
        chosen = arms.MAIN.lrs[positions]
        assert min(rates) < chosen < max(rates)
        for window in ("w4", "w32"):
            swept = [a.lr for a in SETS["main"]["sweep"] if a.name.startswith(f"{window}-lr")]
            own = {ARMS["main"][f"{window}-lr{rate:g}-{positions}"].lr for rate in rates}
            assert own == set(rates) <= set(swept)
    assert 2 * 2 * 10 == len(SETS["main"]["sweep"]) * len(arms.SWEEP_SEEDS)


def test_every_arm_has_a_model():
    seeds = {name: len(arms.seeds_of(name)) for name in SETS["main"]}
    assert len(SETS["main"]["core"]) * seeds["core"] == 100
    assert {seeds[name] for name in arms.CONTROLS} == {5}
    assert {seeds[name] for name in ("core", "long", "recurrent", "cures")} == {10}
    assert not set(arms.SWEEP_SEEDS) & set(arms.SEEDS)
    for arm in ARMS["main"].values():
        prefix = (arm.prefix,) if arm.prefix else ()
        assert arm.model().layout.names == prefix + ("local", "full") * 2
        assert (arm.model().mixers["full"].rope is None) == arm.name.endswith("nope")
        assert arm.begins_with is None or arm.begins_with in ARMS["main"]


def test_the_models_of_the_main_table_have_equal_sizes():
    counts = {Model.of(ARMS["main"][n].model()).count() for n in ("w4-rope", "full-nope")}
    assert counts == {152_256}  # as the page says


def test_the_large_scale_has_100_million_parameters():
    arm = ARMS["large"]["w512-rope"]
    assert 0.9e8 < Model.of(arm.model()).count() < 1.2e8
    assert arm.model().layout.names == ("near", *("local", "full") * 7) and arm.final == 512


def test_an_unknown_arm_is_one_sentence(tmp_path, capsys):
    assert run.main(["--workdir", str(tmp_path), "--arms", "w5"]) == 2
    assert "there is no 'w5'" in capsys.readouterr().err


def test_runs_of_another_folder_stay_in_the_tables(tmp_path):
    """Rows of the same run are replaced, those of arms that are gone are left out, and order is that of arms."""

    def of(arm, seed, step):
        curve = [dict(arm=arm, seed=seed, step=at) for at in (0, step)]
        influence = [dict(arm=arm, seed=seed, first=1, last=2, influence=step)]
        return tables.Tables(curve, [dict(arm=arm, seed=seed, steps=step)], influence)

    def both(*found):
        return tables.Tables(*(sum(rows, []) for rows in zip(*found)))

    first = both(of("w4-rope", 0, 50), of("w8-rope", 0, 50))
    assert tables.write_tables(tmp_path, first) == 0
    file = tmp_path / "runs.tsv"
    file.write_text(
        file.read_text() + file.read_text().splitlines()[1].replace("w4-rope", "gone") + "\n"
    )
    assert tables.write_tables(tmp_path, both(of("w4-rope", 1, 100), of("w4-rope", 0, 150))) == 1
    for name, count in (("curves", 2), ("runs", 1), ("influence", 1)):
        rows = tables.read(tmp_path / f"{name}.tsv")
        keys = [(row["arm"], row["seed"]) for row in rows]
        expected = [("w4-rope", "0"), ("w4-rope", "1"), ("w8-rope", "0")]
        assert keys == [key for key in expected for _ in range(count)]
    rows = {(row["arm"], row["seed"]): row["steps"] for row in tables.read(file)}
    assert rows == {("w4-rope", "0"): "150", ("w4-rope", "1"): "100", ("w8-rope", "0"): "50"}


def test_only_runs_that_the_committed_tables_lack(tmp_path, monkeypatch, capsys):
    committed = [dict(arm="w4-rope", seed=seed) for seed in (0, 2)]
    tables.write(tmp_path / "main" / "runs.tsv", tables.run_columns(), committed)
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    options = ["--workdir", str(tmp_path), "--arms", "w4-rope,w8-rope", "--seeds", "3", "--list"]
    assert run.main([*options, "--missing"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 runs are in the committed tables\n")
    assert [line.split(":")[0].split() for line in printed.splitlines()[1:]] == [
        ["w8-rope", "seed", "0"],
        ["w4-rope", "seed", "1"],
        ["w8-rope", "seed", "1"],
        ["w8-rope", "seed", "2"],
    ]


@pytest.mark.parametrize(
    ("options", "count"), [([], 5), (["--seeds", "10"], 10), (["--seeds", "3"], 3)]
)
def test_controls_have_five_seeds_unless_more_are_asked_for(tmp_path, capsys, options, count):
    words = ["--workdir", str(tmp_path), "--list", *options]
    for what in (["--sets", "far"], ["--arms", "w4-far-rope"]):
        assert run.main([*words, *what]) == 0
        lines = capsys.readouterr().out.splitlines()
        own = [line for line in lines if line.startswith("w4-far-rope ")]
        assert [line.split(":")[0].split()[-1] for line in own] == [str(i) for i in range(count)]
    assert run.main([*words, "--sets", "sweep"]) == 0  # two seeds, however many are asked for
    seeds = {line.split(":")[0].split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert seeds == {str(seed) for seed in arms.SWEEP_SEEDS}
