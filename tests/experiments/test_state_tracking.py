"""Labels against independent products, scores of planted answers, and runs that go on where they were stopped."""

import itertools
import json

import numpy as np
import pytest

from experiments.state_tracking import results, run, runs, tasks
from experiments.state_tracking.arms import ARMS, LENGTH, SOME, STEPS
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


def test_the_tokens_of_a5_generate_a_group_that_is_not_solvable():
    group = tasks.generated([tasks.DOUBLE_SWAP, tasks.FIVE_CYCLE])
    assert len(group) == 60 and all(np.linalg.det(matrix(p)) > 0 for p in group)
    inverse = {p: tuple(np.argsort(p).tolist()) for p in group}
    commutators = [
        tasks.compose(tasks.compose(p, q), tasks.compose(inverse[p], inverse[q]))
        for p in group
        for q in group
    ]
    assert tasks.generated(list(set(commutators))) == group


def test_s3_is_solvable_and_does_not_commute():
    swap, cycle = (1, 0, 2), (1, 2, 0)
    assert tasks.generated([swap, cycle]) == list(tasks.S3)
    assert tasks.compose(swap, cycle) != tasks.compose(cycle, swap)


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


def untimed(folder):
    lines = [json.loads(line) for line in (folder / run.FILE).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "cpu_seconds"} for line in lines]


def test_a_run_stopped_anywhere_goes_on_where_it_was(tmp_path):
    todo = run.units(["parity", "mqar"], ["short_conv"], 1)
    list(run.train(tmp_path / "whole", todo, 3))
    whole = (tmp_path / "whole" / run.FILE).read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / run.FILE).write_bytes(whole[: whole.index(b"\n") + 20])
    assert [row["task"] for row in run.train(tmp_path / "cut", todo, 3)] == ["mqar"]
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")
    assert list(run.train(tmp_path / "cut", todo, 3)) == []
    with pytest.raises(UserError, match="short_conv.*other settings"):
        list(run.train(tmp_path / "cut", todo, 4))


def test_the_tables_of_the_page_are_those_of_the_committed_runs():
    page = results.README.read_text()
    rows = run.read(results.RESULTS)
    assert results.with_tables(page, rows) == page
    for unit, row in rows.items():
        assert row["settings"] == run.settings(ARMS[unit.arm], unit.task, STEPS[unit.task])


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


def test_results_are_collected_in_one_order(tmp_path):
    def row(unit):
        return {**unit._asdict(), "accuracy": [1, 1, 1], "steps": 1, "cpu_seconds": 0.1, "loss": 0}

    todo = run.units(["parity", "mqar"], ["gdn", "mamba2"], 3)
    for unit in reversed(todo):
        run.add(tmp_path, row(unit))
    results.collect(tmp_path, tmp_path / "out")
    assert list(run.read(tmp_path / "out")) == run.units(["parity", "mqar"], ["mamba2", "gdn"], 3)
    made = results.tables(run.read(tmp_path / "out"))
    assert "| Mamba-2 | 3 | 1 | 1.00 (1.00 to 1.00) |" in made["task_parity"]
    assert "disagrees" in made["task_parity"] and made["task_s3"] == "Not yet run."
