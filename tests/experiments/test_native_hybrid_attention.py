"""Native Hybrid Attention: arms, runs that go on, tables from rows, conversion, recipes at the paper's budget."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from experiments.native_hybrid_attention import (
    convert,
    figures,
    finetune,
    kept,
    papers,
    results,
    run,
    runs,
    search,
    tables,
)
from experiments.native_hybrid_attention.arms import (
    ARMS,
    MQAR,
    SCALES,
    SEEDS,
    SETS,
    TEXT,
    Arm,
    causes,
    controls,
    core,
    nha,
    slide,
)
from hybridlm import config as configs
from hybridlm.commands import dry_run
from hybridlm.data import train_bpe
from hybridlm.data.settings import DataConfig, TokenizerConfig
from hybridlm.data.tokenizers import ByteTokenizer, open_tokenizer
from hybridlm.distill.selection.selection import SelectorSettings
from hybridlm.distill.selection.settings import SearchSettings
from hybridlm.errors import UserError
from hybridlm.evals.heldout import open_heldout
from hybridlm.models.mixers.traced_nha import SPAN
from hybridlm.models.params import Model
from hybridlm.models.trainable import Trainable
from hybridlm.runs import open_model
from kernels_pallas import dispatch
from tests.distill.subjects import FULL, opened, teacher, tokens
from tests.models.small import model_config

SHORT = nha(MQAR, 8, 16)


def test_arms_have_the_layers_and_windows_that_they_say():
    for arm in ARMS.values():
        names = [name for name, _ in arm.model().layer_mixers()]
        assert tuple(names) == arm.layers
        served = [getattr(m, "window", None) for _, m in arm.served().layer_mixers()]
        if "nha" in arm.layers:
            assert tuple(served) == arm.windows
    (last,) = {core(task)[0].windows[-1] for task in SCALES}
    assert last is None
    for chosen in SETS.values():
        assert len({(arm.task, arm.name) for arm in chosen.arms}) == len(chosen.arms)


def test_arms_of_other_windows_share_a_program_and_keep_their_windows():
    with dispatch.auto_means("reference"):
        first, second = (runs.program(arm) for arm in (core(MQAR)[0], SHORT))
    assert first.step is second.step and first.best is second.best
    model = Model.of(SHORT.model())
    for made, want in ((first, core(MQAR)[0].spans()), (second, (8, 8))):
        named = model.by_name(made.init(jax.random.key(0))["params"])
        assert [float(named[f"layers.{i}.mixer.{SPAN}"]) for i in range(2)] == list(want)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with two runs of three steps."""
    folder = tmp_path_factory.mktemp("whole")
    todo = [run.Unit(MQAR, SHORT.name, 0), run.Unit(MQAR, nha(MQAR, 0, 16).name, 0)]
    with dispatch.auto_means("reference"):
        list(run.train(folder, todo, 3))
    return folder, todo


def untimed(workdir):
    rows = run.read(workdir)
    return {u: {k: v for k, v in row.items() if k != "cpu_seconds"} for u, row in rows.items()}


def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(trained, tmp_path):
    folder, todo = trained
    path = todo[0].path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(todo[0].path(folder).read_bytes())
    todo[1].path(tmp_path).with_suffix(".json.partial").parent.mkdir(parents=True, exist_ok=True)
    left = run.lacking(tmp_path, todo, 3)
    assert left == todo[1:]
    with dispatch.auto_means("reference"):
        list(run.train(tmp_path, left, 3))
    assert untimed(tmp_path) == untimed(folder)
    assert run.lacking(tmp_path, todo, 3) == []
    with pytest.raises(UserError, match="other settings than now"):
        run.lacking(tmp_path, todo, 4)


def test_windows_change_a_run_and_not_its_seed(trained):
    rows = untimed(trained[0])
    a, b = rows.values()
    assert set(a) == set(results.COLUMNS) - {"heldout", "cpu_seconds"}
    assert a["loss"] != b["loss"] and a["settings"] != b["settings"]


def test_text_is_trained_and_measured_on_held_out_bytes(tmp_path, in_root, monkeypatch):
    monkeypatch.setattr(runs, "TEXT_HELD_OUT", 8)
    arm = nha(TEXT, 16, 16)
    with dispatch.auto_means("reference"):
        row = runs.run(arm, 0, tmp_path, 2)
    assert row["steps"] == 2 and 3 < row["heldout"] < 8
    first = runs.pipeline(128, 8, 0, tmp_path).batch(1)
    assert not np.array_equal(
        first["tokens"], runs.pipeline(128, 8, 1, tmp_path).batch(1)["tokens"]
    )


@pytest.mark.parametrize("name", ["TEXT_HELD_OUT", "TEXT_LAST", "TEXT_CORPUS"])
def test_what_a_run_on_text_is_measured_on_is_in_its_settings(name, monkeypatch):
    arms = nha(TEXT, 16, 16), nha(MQAR, 8, 16)
    before = [run.settings(arm, 400) for arm in arms]
    monkeypatch.setattr(run, name, "other")
    after = [run.settings(arm, 400) for arm in arms]
    assert after[0] != before[0] and after[1] == before[1]


def planted(unit: run.Unit, figure: float) -> run.Row:
    """A row as a run with the settings of now would give it."""
    arm = ARMS[unit.task, unit.arm]
    row = {**unit._asdict(), "steps": arm.scale.steps, "loss": 0.5, "cpu_seconds": 6.0}
    names = ("accuracy_1x", "accuracy_2x", "accuracy_4x") if unit.task == MQAR else ("heldout",)
    return {
        **row,
        **dict.fromkeys(names, figure),
        "settings": run.settings(arm, arm.scale.steps),
    }


def write(folder: pathlib.Path, rows) -> pathlib.Path:
    for row in rows:
        path = run.Unit(row["task"], row["arm"], row["seed"]).path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
    return folder


def rows_of(arm: Arm, values) -> dict[run.Unit, run.Row]:
    units = [run.Unit(arm.task, arm.name, seed) for seed in range(len(values))]
    return {unit: planted(unit, value) for unit, value in zip(units, values)}


def test_a_comparison_is_paired_by_seed_with_an_exact_interval():
    base, other = core(MQAR)[:2]
    rows = rows_of(base, [0.9] * 6) | rows_of(other, [0.8, 0.7, 0.8, 0.7, 0.8, 0.7])
    text = tables.comparison(rows, MQAR, core(MQAR), base)
    line = next(line for line in text.splitlines() if line.startswith("| GSA hybrid"))
    # the least and most mean of a subset of the differences, -0.1 and -0.2; p is 2 / 64
    assert "-0.150 [-0.200, -0.100] | 0.031 |" in line
    assert "| 6 |" in line and "0.750 (0.700 to 0.800)" in line and "full attention" not in text
    few = tables.comparison(rows_of(base, [0.9]) | rows_of(other, [0.8]), MQAR, core(MQAR), base)
    assert "-0.100 to -0.100 in 1 pairs" in few
    assert tables.comparison({}, TEXT, core(TEXT), core(TEXT)[0]) == tables.NOT_RUN


def test_a_slide_and_an_ablation_say_what_was_not_run():
    rows = rows_of(nha(MQAR, 8, 16), [0.25]) | rows_of(nha(MQAR, 32, 16), [1.0])
    text = tables.slide_table(rows, MQAR)
    assert "| 8 | 1 | 0.250 | -0.750" in text and "| 16 |" not in text
    cells = tables.ablation_table(rows)
    assert "| 16 | not run | not run | not run | 0.250 | not run |" in cells
    more = rows_of(nha(MQAR, 8, 16), [0.2, 0.3, 0.4, 1.0, 1.0, 1.0])
    assert "0.300 (0.200 to 0.400)" in tables.ablation_table(more), (
        "the slide's further seeds are in"
    )
    assert "Seeds of a cell: 3." in tables.ablation_table(more)
    assert set(tables.drawn(rows)) == {"slide_mqar"}
    assert tables.drawn({}) == {} and tables.figures_table({}) == tables.NOT_RUN


def test_the_causes_are_compared_with_the_published_layer_of_the_same_seeds():
    published, scaled, *_, all_four = causes()
    assert (
        published.name == nha(MQAR, 32, 16).name
        and published.settings() == nha(MQAR, 32, 16).settings()
    )
    assert scaled.settings()["mixers"]["nha"]["scale"] is None and len(all_four.changed) == 4
    rows = rows_of(published, [0.2, 0.3, 0.4, 1.0])
    assert tables.causes_table(rows) == tables.NOT_RUN
    text = tables.causes_table(rows | rows_of(all_four, [0.9, 0.9, 0.9]))
    assert "| as published | 3 | 0.300 (0.200 to 0.400) |  |" in text, (
        "the seeds of its own set alone"
    )
    assert (
        "| all four changes | 3 | 0.900 (0.900 to 0.900) | +0.600, +0.500 to +0.700 in 3 pairs |"
        in text
    )


def test_the_cost_of_what_is_left_is_that_of_a_measured_run():
    text = tables.cost_table(rows_of(nha(MQAR, 8, 16), [0.25]))
    planned = len(run.units())
    of_task = [u for u in run.units() if u.task == MQAR]
    assert f"| all | | {planned} | 1 | | 0.1 | not measured |" in text
    assert sum(u.task == MQAR for u in run.units()) == len(of_task) > 100
    assert "| slide: w from 0 to T | MQAR | 48 | 1 | 6.0 | 0.1 | 4.7 |" in text


def test_every_figure_is_drawn_from_rows():
    rows = {unit: planted(unit, 0.5) for unit in run.units(seeds=1)}
    made = figures.figures(rows)
    assert set(made) == set(tables.drawn(rows)) and len(made) == 5
    titles = {arm.title for task in SCALES for arm in [*core(task), *controls(task)]}
    assert titles == set(figures.SHORT)


def test_runs_are_collected_in_one_table_and_other_settings_are_refused(tmp_path):
    todo = [unit for unit in run.units(["slide"], [MQAR], 2)]
    workdir = write(tmp_path / "work", [planted(unit, 0.5) for unit in reversed(todo)])
    for name, place in results.OTHERS.items():
        (workdir / place).parent.mkdir(exist_ok=True)
        shutil.copy(results.RESULTS / f"{name}.tsv", workdir / place)
    out = tmp_path / "out"
    results.collect(workdir, out)
    assert results.read(out) == run.read(workdir) and list(results.read(out)) == todo
    assert results.read_others(out) == results.read_others() and all(results.read_others().values())
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- table slide_mqar, made by results.py -->\n<!-- end -->\nAfter\n")
    assert results.main(["--results", str(out), "--page", str(page)]) == 0
    assert "| 32 | 2 | 0.500 (0.500 to 0.500) |  |" in page.read_text()
    assert {p.name for p in out.iterdir()} >= {"runs.tsv", "slide_mqar.svg"}
    write(workdir, [planted(todo[0], 0.5) | {"settings": "old"}])
    with pytest.raises(UserError, match="other settings than now.*'nha-w0-m16' on 'mqar', seed 0"):
        results.collect(workdir, out)
    with pytest.raises(UserError, match="no run in .*empty is complete"):
        results.collect(tmp_path / "empty", out)


def test_the_page_is_that_of_the_committed_results():
    page, rows = results.README.read_text(), results.read()
    assert results.with_tables(page, rows, results.read_others()) == page
    assert page.count("made by results.py") == 12
    assert all(run.is_current(unit, row) for unit, row in rows.items())
    assert {path.stem for path in results.RESULTS.glob("*.tsv")} == {"runs", *results.OTHERS}
    drawn = {path.stem for path in results.RESULTS.glob("*.svg")}
    assert drawn == set(tables.drawn(rows))


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--steps", "0"], "--steps must be at least 1, not 0"),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["--seeds", "7"], "--seeds must be from 1 to 6, not 7"),
        (["--sets", "cores"], "there is no 'cores': there are core, slide"),
        (["--arms", "nha"], "there is no arm 'nha'"),
    ],
)
def test_the_command_refuses_numbers_and_names_out_of_range(tmp_path, options, wrong):
    with pytest.raises(UserError, match=wrong):
        run.main(["--workdir", str(tmp_path / "work"), *options])
    assert not (tmp_path / "work").exists()


def test_seeds_come_one_after_the_other():
    todo = run.units()
    assert [unit.seed for unit in todo] == sorted(unit.seed for unit in todo)
    assert len(set(todo)) == len(todo) and {u.seed for u in todo} == set(SEEDS)
    assert {(u.task, u.arm) for u in todo} == set(ARMS)
    assert len(slide(MQAR)) == 8


def test_a_conversion_with_wide_windows_is_the_teacher():
    ours = teacher(depth=4)
    length = tokens().shape[1]
    with dispatch.auto_means("reference"):
        found = convert.convert(ours, length, 4, (1,), "masked").student
        np.testing.assert_allclose(found.logits(tokens()), ours.logits(tokens()), atol=2e-5)
        narrow = convert.convert(ours, 3, 4, (1,), "masked").student
        assert np.abs(narrow.logits(tokens()) - ours.logits(tokens())).max() > 1e-3
    spans = [mixer.window for _, mixer in narrow.config.layer_mixers()]
    assert spans == [3, None, 3, 3]
    with pytest.raises(UserError, match="layer 4 cannot see all tokens"):
        convert.convert(ours, full=(4,))


def test_the_command_writes_a_model_with_full_layers(tmp_path, in_root, capsys):
    from tests.train.distilling import save_pair

    save_pair(tmp_path, dict(kind="gdn"), depth=4)
    words = [str(tmp_path / "teacher"), "--window", "5", "--slots", "3", "--full", "2"]
    assert convert.main([*words, "--residue", "1", "--out", str(tmp_path / "nha")]) == 0
    said = capsys.readouterr().out
    assert "layers that see all tokens: 1, 3" in said and "copied: mixer.gate.kernel" in said
    found = open_model(tmp_path / "nha")
    assert [m.window for _, m in found.config.layer_mixers()] == [5, None, 5, None]
    c = configs.load(f"{finetune.__file__}:student={tmp_path / 'nha'},steps=4,length=32,batch=2")
    assert (c.optimizer.lr, c.teacher) == (finetune.RATE, None)
    trained = Trainable.of(Model.of(found.config), c.optimizer.freeze)
    frozen = [n for n in found.model.by_name(found.params) if ".mlp." in n]
    sizes = {n: x.size for n, x in found.model.by_name(found.params).items()}
    left = sum(sizes.values()) - sum(sizes[n] for n in frozen)
    assert frozen and trained.count(Model.of(found.config)) == left


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("llama_3_8b", [0, 8, 16, 24]),
        ("qwen2_5_7b", [0, 7, 14, 21]),
        ("qwen2_5_1_5b", [0, 7, 14, 21]),
    ],
)
def test_a_recipe_at_the_paper_s_budget_is_dry_run_without_the_checkpoint(name, full):
    c = configs.load(f"{papers.__file__}:model={name}", [])
    windows = [mixer.window for _, mixer in c.model.layer_mixers()]
    assert [i for i, w in enumerate(windows) if w is None] == full
    assert set(windows) == {None, 64} and c.optimizer.lr == 3e-5
    assert c.tokens_per_step * c.train.steps == 10_240 * 256 * 2048
    assert c.model.layer_mixers()[0][1].bias == name.startswith("qwen")
    text = dry_run.describe(c)
    assert "training tokens     5,368,709,120 in 10,240 steps of 524,288" in text
    (line,) = [line for line in text.splitlines() if line.startswith("trained parameters")]
    frozen = c.model.depth * 3 * c.model.width * c.model.mlp.hidden
    assert int(line.split()[-1].replace(",", "")) == Model.of(c.model).count() - frozen


@pytest.mark.parametrize(
    ("recipe", "billions", "tokens_in_billions"),
    [("nha_340m", 0.347, 16.1), ("nha_1_3b", 1.311, 100.0)],
)
@pytest.mark.parametrize("arg", ["", ":full"])
def test_the_paper_s_models_from_scratch(in_root, recipe, billions, tokens_in_billions, arg):
    c = configs.load(f"configs/nha/{recipe}.py{arg}", [])
    assert Model.of(c.model).count() / 1e9 == pytest.approx(billions, abs=0.001)
    assert c.tokens_per_step * c.train.steps / 1e9 == pytest.approx(tokens_in_billions, abs=0.1)
    full = [i for i, (_, m) in enumerate(c.model.layer_mixers()) if m.window is None]
    assert full == ([7, 15, 23] if arg else [])
    assert "trained parameters" in dry_run.describe(c)


def test_the_search_has_a_row_for_each_method_and_compiles_nothing(tmp_path):
    with dispatch.auto_means("reference"):
        ours = opened(model_config("full", depth=3, vocab_size=64))
        model = convert.convert(ours, 4, 2).student
        rows = search.search(
            model,
            tmp_path,
            4,
            SearchSettings(
                methods=("exhaustive", "uniform"),
                keep=1,
                length=32,
                samples=2,
                sets=2,
                batch=4,
                context=64,
            ),
            SelectorSettings("mqar_nll"),
        )
    assert [row["method"] for row in rows] == ["exhaustive", "uniform", "all wide", "all narrow"]
    assert rows[0]["compiled"] == "0" and int(rows[0]["evaluations"]) == 3
    assert "| exhaustive |" in tables.search_table(rows)
    with pytest.raises(UserError, match="--methods has 'gates'"):
        search.search(
            model, tmp_path, 4, SearchSettings(methods=("gates",), keep=1), SelectorSettings("kl")
        )


@pytest.fixture(scope="module")
def conversion(tmp_path_factory):
    """A teacher, its conversion, and that with other parameters and the data of a run."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    lines = (" ".join(rng.choice("the union of states shall be".split(), 40)) for _ in range(40))
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = model_config("full", depth=2, mixers=dict(full=FULL), vocab_size=258)
    with dispatch.auto_means("reference"):
        ours = dataclasses.replace(opened(config), tokenizer=ByteTokenizer(), path=folder)
        converted = convert.convert(ours, 4, 2).student
    data = DataConfig({"a": dict(kind="jsonl", path=str(text))}, seq_len=32, batch_size=4)
    data = dataclasses.replace(data, heldout_fraction=0.5, token_cache=str(folder / "tokens"))
    params = jax.tree.map(lambda x: x + np.float32(0.01), converted.params)
    return ours, converted, dataclasses.replace(converted, params=params, data=data)


def test_what_a_conversion_keeps_is_the_loss_and_the_divergence_of_its_logits(conversion):
    with dispatch.auto_means("reference"):
        rows = kept.measure(conversion, length=32, sequences=7)
        batches = list(open_heldout(conversion[2], 32, "a test").heldout_batches(1, 7))
        assert [row["model"] for row in rows] == [name for name in kept.MODELS for _ in range(7)]
        for number, model in enumerate(conversion):
            row, batch = rows[7 * number + 3], batches[3]
            log_p, log_q = (
                jax.nn.log_softmax(m.logits(batch["tokens"], batch["segment_ids"]))
                for m in (conversion[0], model)
            )
            kl = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
            nll = -np.take_along_axis(np.asarray(log_q), batch["targets"][..., None], -1)[..., 0]
            wanted = [np.average(x, weights=batch["loss_weights"]) for x in (nll, kl)]
            got = [float(row["loss"]), float(row["kl"])]
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-6)
            assert (got[1] == 0) == (number == 0) and row["tokens"] == batch["loss_weights"].sum()
    text = tables.kept_table([{k: str(v) for k, v in row.items()} for row in rows])
    assert text.count("\n| ") == 3 and "| teacher | " in text and ", p 0.016" in text
    assert tables.kept_table([]) == tables.NOT_RUN


def test_models_that_cannot_be_compared_are_refused(conversion, tmp_path):
    ours, converted, finetuned = conversion
    train_bpe(["the union of states"] * 4, 270, tmp_path / "bpe.json")
    other = open_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path / "bpe.json")))
    foreign = dataclasses.replace(converted, tokenizer=other)
    cases = (
        ((ours, foreign, finetuned), 1, "has another tokenizer than the teacher"),
        ((ours, converted, converted), 1, "reads the held-out data of a run"),
        (conversion, 0, "--sequences is 0: it must be at least 1"),
        (conversion, -1, "--sequences is -1: it must be at least 1"),
        (conversion, 10**6, "--sequences is 1000000, and the held-out text has"),
    )
    for models, sequences, message in cases:
        with pytest.raises(UserError, match=message):
            kept.measure(models, 32, sequences)
