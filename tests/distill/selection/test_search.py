"""A search on a real teacher and student: its table, its models, its map, and what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from hybridlm.data import train_bpe
from hybridlm.data.settings import DataConfig, TokenizerConfig
from hybridlm.data.tokenizers import ByteTokenizer, open_tokenizer
from hybridlm.distill.compose import composed
from hybridlm.distill.selection.compilations import Compilations
from hybridlm.distill.selection.measures import METRICS as METRICS_OF_MODELS
from hybridlm.distill.selection.registry import SELECTORS
from hybridlm.distill.selection.search import LayerSearch, check_settings
from hybridlm.distill.selection.selection import SelectorSettings
from hybridlm.distill.selection.settings import GateSettings, SearchSettings
from hybridlm.distill.transfer import transfer
from hybridlm.errors import RunError, UserError, WriteError
from hybridlm.evals.mqar import mqar
from hybridlm.runs import open_model, save_model
from hybridlm.storage.writing import writing
from kernels_pallas import dispatch
from tests.distill.subjects import FULL, opened
from tests.models.small import model_config

SMALL = dict(length=32, samples=2, sets=2, batch=4, context=1000)
METRICS = SelectorSettings(metric="kl", recall="mqar_nll", commonsense="loss")
WORDS = "the union of states shall be a hybrid and its windows are short".split()


@pytest.fixture(autouse=True)
def reference_forms():
    """Uses the reference forms, which compile fastest."""
    with dispatch.auto_means("reference"):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(teacher, student): byte models of 3 layers; the student has the data of a run."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    lines = (" ".join(rng.choice(WORDS, 40)) for _ in range(60))
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = model_config("full", depth=3, mixers=dict(full=FULL), vocab_size=258)
    teacher = dataclasses.replace(opened(config), tokenizer=ByteTokenizer(), path=folder)
    student = transfer(teacher, dict(kind="attention", window=2)).student
    data = DataConfig(
        {"text": dict(kind="jsonl", path=str(text))},
        seq_len=32,
        batch_size=4,
        heldout_fraction=0.5,
        token_cache=str(folder / "tokens"),
    )
    return teacher, dataclasses.replace(student, data=data)


def search(models, out, selector=METRICS, gates=GateSettings(), **settings):
    out.mkdir(exist_ok=True)
    return LayerSearch(*models, out, SearchSettings(**{**SMALL, **settings}), selector, gates)


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    """(search, what it found, the folder)."""
    out = tmp_path_factory.mktemp("search")
    with dispatch.auto_means("reference"):
        made = search(models, out, methods=("greedy", "halo", "uniform"), keep=1, curve=(1, 2))
        found = made.run()
        made.close()
        return made, found, out


def test_greedy_is_the_best_of_its_round(done, models):
    made, found, _ = done
    kl = {i: np.mean(made.table(frozenset({i}), "kl")) for i in range(3)}
    first = max(range(3), key=lambda i: -np.mean(made.table(frozenset({0, 1, 2}) - {i}, "kl")))
    left = set(range(3)) - {first}
    assert set(found[0].selection.kept) == {min(left, key=kl.get)}


@pytest.mark.slow
def test_the_teacher_s_kl_is_zero_and_the_loss_is_that_of_its_logits(done, models):
    made, _, _ = done
    teacher, student = models
    assert np.abs(made.table(frozenset({0, 1, 2}), "kl")).max() < 1e-6
    batch = made.measures._text[0]
    q, p = (
        jax.nn.log_softmax(m.logits(batch["tokens"], batch["segment_ids"]))
        for m in (composed(teacher, student, {1}), teacher)
    )
    weights = batch["loss_weights"]
    nll = -np.take_along_axis(np.asarray(q), batch["targets"][..., None], -1)[..., 0]
    kl = np.sum(np.exp(p) * (p - q), axis=-1)
    for name, by_token in (("loss", nll), ("kl", kl)):
        sums = (by_token * weights).reshape(2, -1).sum(1) / weights.reshape(2, -1).sum(1)
        values = made.table(frozenset({1}), name)
        np.testing.assert_allclose(values, sums, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_answers_are_scored_on_their_own_tokens(done, models):
    made, _, _ = done
    values = made.table(frozenset({0, 1}), "mqar_nll")
    batch = mqar(32, 2, 4, seed=1, vocab_size=258)  # the first of the evaluation sets
    whole = composed(*models, {0, 1})
    log_p = np.asarray(jax.nn.log_softmax(whole.logits(batch.tokens)))
    nll = -np.take_along_axis(log_p, batch.targets[..., None], -1)[..., 0] * batch.loss_weights
    np.testing.assert_allclose(values, nll.reshape(2, -1).sum(1) / 4, rtol=2e-5)


def test_the_same_search_again_makes_no_evaluation_and_keeps_the_models(done, models):
    _, found, out = done
    before = (out / "evaluations.jsonl").read_bytes()
    again = search(models, out, methods=("greedy", "halo", "uniform"), keep=1, curve=(1, 2))
    same = again.run()
    again.close()
    assert again.table.measured == 0 and (out / "evaluations.jsonl").read_bytes() == before
    assert [f.selection for f in same] == [f.selection for f in found]


def test_no_swap_of_a_search_compiles_anything(done):
    """Every metric of every set of layers, after one; the table is passed by."""
    measures = done[0].measures
    metrics, counted = ("kl", "loss", "mqar_nll"), Compilations()
    for metric in metrics:
        measures(frozenset(), metric)
    measures._sums.clear()
    with counted:
        for kept in ((0,), (1, 2), (0, 1, 2), (2,)):
            found = [measures(frozenset(kept), metric) for metric in metrics]
    assert counted.count == 0
    assert found == [done[0].table(frozenset({2}), metric) for metric in metrics]


@pytest.mark.slow
def test_each_method_writes_the_model_of_its_layers(done, models):
    _, found, out = done
    for one in found:
        model, wanted = (
            open_model(out / one.selection.method),
            composed(*models, one.selection.kept),
        )
        x = np.random.default_rng(0).integers(0, 258, (1, 9))
        np.testing.assert_array_equal(model.logits(x), wanted.logits(x))


def test_the_record_has_intervals_the_map_and_the_curve(done):
    made, found, out = done
    record = json.loads((out / "selections.json").read_text())
    assert [s["method"] for s in record["selections"]] == ["greedy", "halo", "uniform"]
    assert len(record["ends"]["teacher"]) == 2 and record["layers"] == [0, 1, 2]
    points = {(p["method"], p["replaced"]) for p in record["curve"]}
    assert points == {(m, r) for m in ("greedy", "halo", "uniform") for r in (0, 1, 2)}
    assert [row["layer"] for row in record["retrieval"]["layers"]] == [0, 1, 2]
    assert len(record["retrieval"]["top"]) == 4
    for selection in record["selections"]:
        overlap = selection["overlap"]
        lost = [int(head.split(".")[0]) for head in overlap["lost"]]
        assert overlap["kept"] + len(lost) == overlap["heads"] == 4
        assert not set(lost) & set(selection["kept"])
    text = made.text(found)
    assert "keeps 1 of 3: layers" in text and "top 4 induction heads" in text
    assert "no needles were used to find retrieval heads: needle does not fit 32 tokens" in text
    assert "against" in text and "±" in text


@pytest.mark.slow
def test_a_byte_budget_bounds_the_cache(models, tmp_path):
    teacher, student = (m.config.layer_mixers()[0][1].state_bytes(32, 1000) for m in models)
    (tmp_path / "uniform.partial" / "params").mkdir(
        parents=True
    )  # left by a search that was killed
    made = search(models, tmp_path, methods=("uniform",), cache=2 * teacher + student)
    (found,) = made.run()
    assert len(found.selection.kept) == 2 and found.cost == 2 * teacher + student
    assert open_model(tmp_path / "uniform").config.depth == 3
    assert not (tmp_path / "uniform.partial").exists()


@pytest.mark.slow
def test_every_method_runs_on_real_models(models, tmp_path):
    methods = (
        "greedy",
        "halo",
        "kl",
        "gates",
        "kl_once",
        "recall",
        "uniform",
        "random",
        "exhaustive",
    )
    gates = GateSettings(gate_steps=3, gate_task="mqar")
    selector = dataclasses.replace(METRICS, recall="needle_nll")
    made = search(models, tmp_path, selector, gates, methods=methods, keep=2, length=160)
    found = made.run()
    assert [len(f.selection.kept) for f in found] == [2] * 9
    assert (tmp_path / "gates_0.6667.json").is_file()


@pytest.mark.slow
def test_the_command_of_the_page_runs_twice(models, tmp_path, monkeypatch, command, page_commands):
    """It writes the files that the page names; the second time it makes no evaluation."""
    teacher, student = models
    save_model(teacher, tmp_path / "runs" / "teacher")
    save_model(student, tmp_path / "runs" / "student", data=True)
    monkeypatch.chdir(tmp_path)
    (words,) = page_commands("selection.md")
    words += ["--sets", "2"]
    words[words.index("--length") + 1] = "256"
    code, out, err = command(*words)
    assert code == 0, err
    files = {path.name for path in (tmp_path / "runs" / "selected").iterdir()}
    named = {"evaluations.jsonl", "selections.json", "select.txt", "quality.svg", "layers.svg"}
    assert files == named | {"greedy", "halo", "uniform"}
    code, again, err = command(*words)
    assert code == 0 and again.count("0 evaluations made") == 3, err
    model = open_model(tmp_path / "runs" / "selected" / "halo")
    assert model.data is not None and model.config.depth == 3


@pytest.mark.slow
def test_tasks_of_the_evaluations_are_metrics(models, tmp_path):
    selector = SelectorSettings(metric="mqar")
    made = search(models, tmp_path, selector, methods=("exhaustive",), keep=1)
    made.table(frozenset(), "mqar")
    before = made.compilations.count
    made.run()
    assert made.compilations.count == before
    assert made.table.measured == 5  # the four sets that fit, and the teacher
    assert all(0 <= v <= 1 for row in made.table.rows() for v in row["values"])


def test_other_models_or_sets_are_refused(done, models):
    with pytest.raises(RunError, match="other evaluations .samples differ"):
        search(models, done[2], methods=("uniform",), keep=1, samples=1)
    wider = transfer(models[0], dict(kind="attention", window=3)).student  # the same parameters
    wider = dataclasses.replace(wider, data=models[1].data)
    with pytest.raises(RunError, match="other evaluations .student differ"):
        search((models[0], wider), done[2], methods=("uniform",), keep=1)


def test_sets_that_are_drawn_by_another_batch_are_refused(done, models, tmp_path):
    """Answers are drawn batch by batch, held-out text is not; a table without a batch still opens."""
    methods, table = dict(methods=("halo",), keep=1), done[2] / "evaluations.jsonl"
    with pytest.raises(RunError, match="other evaluations .batch differ"):
        search(models, done[2], **methods, batch=2)
    search(models, done[2], methods=("uniform",), keep=1, batch=2).close()
    old = table.read_text().replace('"batch": 4', '"unknown": 4')
    assert old != table.read_text()
    (tmp_path / "evaluations.jsonl").write_text(old)
    opened = search(models, tmp_path, **methods)
    opened.close()
    assert len(opened.table) == old.count('{"kept"')


def test_a_folder_with_a_model_of_other_parameters_is_refused_before_writing(models, tmp_path):
    teacher, student = models
    other = jax.tree.map(lambda p: p + np.float32(0.01), student.params)
    there = composed(teacher, dataclasses.replace(student, params=other), {0})
    save_model(there, tmp_path / "uniform", data=True)
    (tmp_path / "selections.json").write_text("{}")
    made = search(models, tmp_path, methods=("uniform",), keep=1)
    with pytest.raises(RunError, match="uniform holds a model with other parameters"):
        made.run()
    made.close()
    assert (tmp_path / "selections.json").read_text() == "{}"


def test_a_curve_does_not_hide_that_the_table_cannot_be_written(models, tmp_path):
    made = search(models, tmp_path, methods=("greedy",), keep=1, curve=(1,))
    made.close()
    with pytest.raises(UserError) as found, open("/dev/full", "wb", buffering=0) as full:

        def evaluate(kept, metric):
            with writing(tmp_path / "evaluations.jsonl"):
                full.write(b"a line")

        made.search = dataclasses.replace(made.search, evaluate=evaluate)
        made._curve()
    assert type(found.value) is WriteError


def test_bad_settings_are_refused(models, tmp_path):
    cases = (
        (dict(methods=("halo",)), "halo needs a budget: give --keep"),
        (dict(methods=("best",), keep=1), "--methods 'best' is unknown"),
        (dict(methods=("uniform",), keep=4), "--keep is 4, and 3 layers are replaced"),
        (dict(methods=("uniform",), keep=1, curve=(4,)), "--curve has 4, and 3 layers"),
        (dict(methods=("uniform",), cache=10), "the budget is 10 bytes of cache at 1,000 tokens"),
        (dict(methods=("uniform",), keep=1, samples=10**6), "take fewer --samples or --sets"),
    )
    for settings, message in cases:
        with pytest.raises(UserError, match=message):
            search(models, tmp_path / str(len(message)), **settings).run()
    with pytest.raises(UserError, match="metric 'kll' is unknown"):
        check_settings(SearchSettings(methods=("greedy",)), SelectorSettings(metric="kll"))


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_reads_metrics_of_models_by_default(name):
    """`hybridlm distill select --methods NAME --keep 1` needs no names of metrics."""
    (chosen,) = check_settings(SearchSettings(methods=(name,), keep=1), SelectorSettings())
    assert chosen.name == name and set(chosen.reads(SelectorSettings())) <= METRICS_OF_MODELS.keys()


def test_greedy_is_refused_a_share_of_the_teacher_s_kl():
    """It is 0, or what rounding leaves of it."""
    cases = ((None, {}, True), (None, dict(min_score=0.1), False), (2, {}, False))
    cases += ((2, dict(max_drop=0.1), True), (None, dict(metric="loss"), False))
    for keep, selector, wrong in cases:
        asked = SearchSettings(methods=("greedy",), keep=keep), SelectorSettings(**selector)
        if wrong:
            with pytest.raises(
                UserError, match="greedy cannot stop at a share of the teacher's kl"
            ):
                check_settings(*asked)
        else:
            check_settings(*asked)


def test_models_without_text_are_refused(models, tmp_path):
    without = dataclasses.replace(models[1], data=None)
    with pytest.raises(UserError, match="reads the held-out data of a run"):
        search((models[0], without), tmp_path, keep=1)


def test_a_student_or_a_text_of_another_tokenizer_is_refused(models, tmp_path):
    teacher, student = models
    train_bpe(["the union of states"] * 4, 270, tmp_path / "bpe.json")
    theirs = open_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path / "bpe.json")))
    other = dataclasses.replace(student, tokenizer=theirs, path=tmp_path / "other")
    settings = SearchSettings(**SMALL, methods=("uniform",), keep=1)
    cases = ((student, other), (other, None), (dataclasses.replace(other, data=None), student))
    for of_student, source in cases:
        with pytest.raises(UserError, match="other has another tokenizer than the teacher"):
            LayerSearch(teacher, of_student, tmp_path, settings, source=source)
    assert not (tmp_path / "evaluations.jsonl").exists()
