"""Labels against independent products, scores of planted answers, and runs that go on where they were stopped."""

import itertools
import json

import numpy as np
import pytest

from experiments.state_tracking import results, run, runs, tasks
from experiments.state_tracking.arms import ARMS, LENGTH, SEEDS, SOME, STEADY, STEPS
from experiments.state_tracking.predictions import CAN, CANNOT, FAMILIES, OPEN, verdict
from experiments.state_tracking.tasks import TASKS
from hybridlm.errors import UserError

STATES = [name for name in TASKS if name != "mqar"]


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def matrix(permutation):
    """The matrix that sends e_i to e_p(i)."""
    return np.eye(len(permutation), dtype=int)[:, list(permutation)]


def test_parity_is_the_running_xor(rng):
    words = tasks.parity(rng, 7, 50)
    assert np.array_equal(words.labels_NT, np.bitwise_xor.accumulate(words.tokens_NT, axis=1))


def test_s3_is_the_product_of_permutation_matrices(rng):
    words = tasks.s3(rng, 5, 30)
    matrices = [matrix(p) for p in itertools.permutations(range(3))]
    for tokens_T, labels_T in zip(words.tokens_NT, words.labels_NT):
        product = np.eye(3, dtype=int)
        for token, label in zip(tokens_T, labels_T):
            product = matrices[token] @ product
            assert np.array_equal(product, matrices[label])


def test_a5_is_where_the_product_sends_the_first_point(rng):
    words = tasks.a5(rng, 5, 30)
    swap, cycle = np.eye(5, dtype=int)[[1, 0, 3, 2, 4]], np.roll(np.eye(5, dtype=int), 1, axis=0)
    for tokens_T, labels_T in zip(words.tokens_NT, words.labels_NT):
        point = np.eye(5, dtype=int)[0]
        for token, label in zip(tokens_T, labels_T):
            point = (np.eye(5, dtype=int), swap, cycle)[token] @ point
            assert point.argmax() == label


def derived(group):
    """The group that the commutators generate."""
    inverse = {p: tuple(np.argsort(p).tolist()) for p in group}
    commutators = [
        tasks.compose(tasks.compose(p, q), tasks.compose(inverse[p], inverse[q]))
        for p in group
        for q in group
    ]
    return tasks.generated(list(set(commutators)))


def test_the_tokens_of_a5_generate_a_group_that_is_not_solvable():
    group = tasks.generated([tasks.DOUBLE_SWAP, tasks.FIVE_CYCLE])
    assert len(group) == 60 and all(np.linalg.det(matrix(p)) > 0 for p in group)
    assert derived(group) == group


def test_s3_is_solvable_and_does_not_commute():
    swap, cycle = (1, 0, 2), (1, 2, 0)
    assert tasks.generated([swap, cycle]) == list(tasks.S3)
    assert tasks.compose(swap, cycle) != tasks.compose(cycle, swap)
    turns = derived(list(tasks.S3))
    assert len(turns) == 3 and derived(turns) == [(0, 1, 2)]


def tracked(name, known):
    """Answers that track the state by hand for `known` tokens, and then stay."""
    points = {
        "parity": [(0, 1), (1, 0)],
        "s3": tasks.products(tasks.S3),
        "a5": [tasks.IDENTITY, tasks.DOUBLE_SWAP, tasks.FIVE_CYCLE],
    }[name]

    def best(tokens_NT, ids_NT):
        out_NT = np.zeros_like(tokens_NT)
        for tokens_T, out_T in zip(tokens_NT, out_NT):
            state = 0
            for t, token in enumerate(tokens_T):
                state = points[token][state] if t < known else state
                out_T[t] = state
        return out_NT

    return best


@pytest.mark.parametrize("name", STATES)
def test_a_tracker_scores_1_and_only_as_far_as_it_tracks(name):
    task, chance = TASKS[name], TASKS[name].chance
    assert runs.accuracy(tracked(name, 10**9), task) == [1, 1, 1]
    near, _, far = runs.accuracy(tracked(name, LENGTH), task)
    assert near == 1 and far == pytest.approx(chance, abs=0.05)


@pytest.mark.parametrize("name", STATES)
def test_one_answer_for_all_scores_chance(name):
    scores = runs.accuracy(lambda tokens_NT, ids_NT: np.ones_like(tokens_NT), TASKS[name])
    assert scores[1:] == pytest.approx([TASKS[name].chance] * 2, abs=0.05)


def test_recall_by_hand_scores_1_at_every_length():
    def looked_up(tokens_NT, ids_NT):
        out_NT = np.zeros_like(tokens_NT)
        for tokens_T, out_T in zip(tokens_NT, out_NT):
            pairs = tokens_T[: 2 * tasks.PAIRS].reshape(-1, 2)
            value = dict(pairs.tolist())
            out_T[:] = [value.get(int(token), 0) for token in tokens_T]
        return out_NT

    assert runs.accuracy(looked_up, TASKS["mqar"]) == [1, 1, 1]
    guess = np.random.default_rng(3)
    scores = runs.accuracy(
        lambda x, ids: guess.integers(tasks.SYMBOLS // 2, tasks.SYMBOLS, x.shape),
        TASKS["mqar"],
        512,
    )
    assert scores == pytest.approx([TASKS["mqar"].chance] * 3, abs=0.02)


def test_a_seed_gives_all_arms_the_same_batches_and_held_out_words_are_others():
    task = TASKS["s3"]
    first, again = runs.batch(task, 0, 3), runs.batch(task, 0, 3)
    assert all(np.array_equal(x, again[name]) for name, x in first.items())
    assert not np.array_equal(first["tokens"], runs.batch(task, 0, 4)["tokens"])
    assert not np.array_equal(first["tokens"], runs.batch(task, 1, 3)["tokens"])


def test_every_arm_is_a_model_of_one_mixer_alone():
    for arm in ARMS.values():
        (kind,) = {mixer.kind_name for _, mixer in arm.model().layer_mixers()}
        assert kind == arm.mixer["kind"]
    assert set(SOME) <= set(TASKS) and all(set(few) <= set(ARMS) for few in SOME.values())


@pytest.mark.parametrize("name", ["mqar", "parity"])
def test_recall_ends_when_it_is_solved_and_state_tracking_at_its_budget(name):
    """With a planted loss of one nat for 30 steps, and of none after."""

    def step(state, batch):
        return state | {"step": state["step"] + 1}, {"loss": float(state["step"] < 30)}

    planted = runs.Program(
        init=lambda key: {"step": 0, "params": {}},
        step=step,
        best=lambda params, tokens_NT, ids_NT: np.zeros_like(tokens_NT),
    )
    row = runs.run(planted, TASKS[name], 0, 100)
    # a step's loss is known after the next one
    assert row["steps"] == (30 + STEADY + 1 if name == "mqar" else 100) and row["loss"] == 0


def test_the_short_convolution_reaches_the_pair_of_one_query_in_eleven(rng):
    arm = ARMS["short_conv"]
    reach = 1 + arm.settings()["depth"] * (arm.mixer["conv_width"] - 1)
    words = tasks.recall(rng, 2000, LENGTH)
    rows, places = np.nonzero(words.weights_NT)
    pairs = words.tokens_NT[rows, : 2 * tasks.PAIRS : 2] == words.tokens_NT[rows, places, None]
    near = places - (2 * pairs.argmax(axis=1) + 1) < reach
    assert reach == 7 and pairs.any(axis=1).all() and near.mean() == pytest.approx(1 / 11, abs=0.01)


def test_in_longer_sequences_most_queries_of_recall_come_early(rng):
    """The figures of README.md: recall at 4 times the length is a weak test of length."""
    places = np.nonzero(tasks.recall(rng, 2000, 4 * LENGTH).weights_NT)[1]
    shares = [(places < LENGTH).mean(), (places < 2 * LENGTH).mean()]
    assert shares == pytest.approx([0.55, 0.79], abs=0.015)


def test_a_digest_changes_with_the_protocol(monkeypatch):
    def digest():
        return run.settings(ARMS["gdn"], "mqar", 5)

    before = digest()
    for name, value in dict(
        SOLVED=0.1, STEADY=5, EARLY=(), HELD_OUT=7, HELD_OUT_SEED=3, TIMES=(1, 2), LENGTH=16
    ).items():
        with monkeypatch.context() as changed:
            changed.setattr(run, name, value)
            assert digest() != before, name
    assert digest() == before != run.settings(ARMS["gdn"], "mqar", 6)


def untimed(folder):
    lines = [json.loads(line) for line in (folder / run.FILE).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "cpu_seconds"} for line in lines]


def test_a_run_stopped_anywhere_goes_on_where_it_was(tmp_path):
    todo = run.units(["parity", "mqar"], ["short_conv"], 1)
    list(run.train(tmp_path / "whole", todo, 3))
    whole = (tmp_path / "whole" / run.FILE).read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / run.FILE).write_bytes(whole[: whole.index(b"\n") + 20])
    left = run.lacking(tmp_path / "cut", todo, 3)
    assert [row["task"] for row in run.train(tmp_path / "cut", left, 3)] == ["mqar"]
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")
    assert run.lacking(tmp_path / "cut", todo, 3) == []
    with pytest.raises(UserError, match="short_conv.*other settings"):
        run.lacking(tmp_path / "cut", todo, 4)
    with pytest.raises(UserError, match="'short_conv' on 'parity', seed 0; .*'mqar', seed 0"):
        results.collect(tmp_path / "cut", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tables_of_the_page_are_those_of_the_committed_runs():
    page = results.README.read_text()
    rows = run.read(results.RESULTS)
    assert results.with_tables(page, rows) == page
    assert all(run.is_current(unit, row) for unit, row in rows.items())


def test_every_arm_has_a_prediction_for_every_task():
    for arm in ARMS.values():
        assert set(FAMILIES[arm.family].says) == set(TASKS)
    assert {says for f in FAMILIES.values() for says in f.says.values()} == {CAN, CANNOT, OPEN}


def test_a_verdict_takes_few_steps_for_no_evidence():
    parity, solved, guess = TASKS["parity"], [1.0, 1.0, 0.95], [1.0, 0.6, 0.5]
    assert verdict(CAN, parity, [solved] * 3) == verdict(CANNOT, parity, [guess] * 3) == "agrees"
    assert verdict(CAN, parity, [solved, guess, guess]) == "1 of 3 seeds within the steps"
    assert "disagrees" in verdict(CANNOT, parity, [solved, guess, guess])
    assert (
        verdict(CAN, TASKS["mqar"], [guess] * 3) == "agrees"
    )  # recall counts at the length itself


def planted(unit, accuracy=1):
    """A line as a run with the settings of now would write it."""
    digest = run.settings(ARMS[unit.arm], unit.task, STEPS[unit.task])
    figures = dict(steps=1, loss=0, accuracy=[accuracy] * 3, cpu_seconds=0.1, settings=digest)
    return unit._asdict() | figures


def write(folder, rows):
    folder.mkdir()
    for row in rows:
        run.add(folder, row)
    return folder


def test_results_are_collected_in_one_order(tmp_path):
    todo = run.units(["parity", "mqar"], ["gdn", "mamba2"], 3)
    workdir = write(tmp_path / "work", map(planted, reversed(todo)))
    results.collect(workdir, tmp_path / "out")
    assert list(run.read(tmp_path / "out")) == run.units(["parity", "mqar"], ["mamba2", "gdn"], 3)
    made = results.tables(run.read(tmp_path / "out"))
    assert "| Mamba-2 | 3 | 1 | 1.00 (1.00 to 1.00) |" in made["task_parity"]
    assert "disagrees" in made["task_parity"] and made["task_s3"] == "Not yet run."
    # heads of 2 x 32 / 16, each with a state of 16 x 16 float32, and three bfloat16 inputs of 2 x 32 + 2 x 16
    assert (
        f"| Mamba-2 | {4 * 16 * 16 * 4 + 3 * 96 * 2:,} | 1.00, 3 of 3 (cannot) |" in made["summary"]
    )


def test_collecting_one_run_keeps_the_others_and_replaces_its_own(tmp_path):
    todo = run.units(["parity"], ["gdn", "mamba2"], 3)
    out = write(tmp_path / "out", map(planted, todo))
    workdir = write(tmp_path / "work", [planted(todo[2], 0.5)])
    results.collect(workdir, out)
    rows = run.read(out)
    assert rows == {unit: planted(unit, 0.5 if unit == todo[2] else 1) for unit in todo}


def test_the_page_names_the_runs_that_are_still_to_be_made():
    planned = run.units(list(TASKS), list(ARMS), len(SEEDS))
    left = [run.Unit("a5", "rwkv7", seed) for seed in SEEDS] + [run.Unit("mqar", "gdn", 2)]
    rows = {unit: planted(unit) for unit in planned if unit not in left}
    assert results.missing(rows).split("\n")[2:] == [
        "- A5, image of a point: RWKV-7",
        "- MQAR: Gated DeltaNet (seed 2)",
    ]
    assert results.missing({unit: planted(unit) for unit in planned}).startswith(
        "All runs were made"
    )


def test_runs_in_the_results_are_not_made_again_unless_their_settings_changed(tmp_path):
    todo = run.units(["parity"], ["gdn"], 3)
    out = write(tmp_path / "out", [planted(todo[0]), planted(todo[1]) | {"settings": "old"}])
    assert run.lacking(tmp_path / "work", todo, results=out) == todo[1:]
    assert run.lacking(tmp_path / "work", todo, 3, out) == todo
    assert run.lacking(tmp_path / "work", todo) == todo


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"settings": "old"}, "'gdn' on 'parity', seed 1"), ({"arm": "gone"}, "'gone' on 'parity'")],
)
def test_a_run_with_other_settings_is_not_collected(tmp_path, changed, name):
    todo = run.units(["parity"], ["gdn"], 3)
    workdir = write(tmp_path / "work", [planted(todo[0]), planted(todo[1]) | changed])
    with pytest.raises(UserError, match=f"other settings than now.*: {name}.*work/runs"):
        results.collect(workdir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--steps", "-1"], "--steps must be at least 1, not -1"),
        (["--steps", "0"], "--steps must be at least 1, not 0"),
        (["--seeds", "-1"], "--seeds must be from 1 to 3, not -1"),
        (["--seeds", "0"], "--seeds must be from 1 to 3, not 0"),
        (["--seeds", str(len(SEEDS) + 1)], "--seeds must be from 1 to 3, not 4"),
        (["--tasks", "a6"], "there is no 'a6'"),
        (["--arms", "gdn,"], "there is no ''"),
    ],
)
def test_the_command_refuses_numbers_and_names_out_of_range(tmp_path, options, wrong):
    with pytest.raises(UserError, match=wrong):
        run.main(["--workdir", str(tmp_path / "work"), *options])
    assert not (tmp_path / "work").exists()


def test_the_command_makes_no_run_that_is_published(tmp_path, capsys):
    words = ["--workdir", str(tmp_path), "--tasks", "mqar,mqar", "--arms", "gdn,rwkv7"]
    assert run.main(words) == 0
    assert capsys.readouterr().out == "6 runs, 6 of them done\n"


def test_the_command_writes_the_page_from_the_runs(tmp_path, capsys):
    page, out = tmp_path / "page.md", write(tmp_path / "out", [])
    page.write_text("Before\n<!-- table summary, made by results.py -->\n<!-- end -->\nAfter\n")
    workdir = write(tmp_path / "work", map(planted, run.units(["parity"], ["gdn"], 2)))
    words = ["--results", str(out), "--page", str(page)]
    assert results.main(["--workdir", str(workdir), *words]) == 0
    assert "| Gated DeltaNet | 2,624 | 1.00, 2 of 2 (cannot) |" in capsys.readouterr().out
    written = page.read_text()
    assert written.startswith("Before\n") and "1.00, 2 of 2" in written
    assert results.main(words) == 0 and page.read_text() == written
    with pytest.raises(UserError, match="no run in .*empty is complete"):
        results.main(["--workdir", str(tmp_path / "empty"), *words])
