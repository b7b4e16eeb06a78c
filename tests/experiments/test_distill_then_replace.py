"""The recipes of Distill-then-Replace: published sizes, and a config of a student's folder."""

import json
import mmap

import numpy as np
import pytest

from experiments.distill_then_replace import (
    arms,
    compiled,
    costs,
    decoding,
    finetuning,
    halo,
    papers,
    recipe,
    results,
    run,
    selecting,
    settings,
    tables,
    usage,
)
from hybridlm import config as configs
from hybridlm.commands import dry_run
from hybridlm.distill.blockwise import distilled_layers
from hybridlm.distill.selection import search
from hybridlm.errors import RunError
from hybridlm.models.params import Model
from tests.train.distilling import save_pair


@pytest.mark.parametrize(
    "name, billions",
    [
        ("qwen2_5_1_5b", 1.54),
        ("qwen3_1_7b", 1.72),
        ("llama_3_2_3b", 3.21),
        ("llama_3_1_8b", 8.03),
        ("llama_3_8b", 8.03),  # of the gallery
    ],
)
def test_a_teacher_has_its_published_number_of_parameters(name, billions):
    assert Model.of(papers.teacher(name)).count() / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("name", papers.MODELS)
def test_a_budget_of_100m_tokens_trains_every_layer_s_mixer(name):
    c = configs.load(f"{papers.__file__}:model={name},mixer=gla", [])
    assert c.tokens_per_step * c.train.steps == pytest.approx(1e8, rel=1e-3)
    assert len(distilled_layers(c.teacher.model, c.model)) == papers.MODELS[name]["depth"]


def test_the_cost_is_told_without_the_checkpoint():
    """Nothing is downloaded for it; `train` refuses what `--dry_run` describes."""
    c = configs.load(f"{papers.__file__}:model=qwen2_5_1_5b,mixer=gdn", [])
    text = dry_run.describe(c)
    assert "training tokens     100,007,936 in 6,104 steps" in text and "teacher 5.7" in text
    assert "init.path checkpoints/qwen2_5_1_5b-gdn is not there" in text


def test_the_stages_of_halo_take_its_2_3b_tokens():
    found = {s: configs.load(f"{halo.__file__}:stage={s}", []) for s in halo.STAGES}
    tokens = [c.tokens_per_step * c.train.steps for c in found.values()]
    assert [round(n / 1e9, 2) for n in tokens] == [0.33, 0.98, 1.05]
    assert set(found[1].model.layout.names) == {"lightning"}
    full = [
        i for i, (_, m) in enumerate(found[2].model.layer_mixers()) if m.kind_name == "attention"
    ]
    assert tuple(full) == halo.KEPT and found[2].model == found[3].model
    assert all(found[2].model.layer_mixers()[i][1].rope is None for i in full)
    assert found[2].model.layer_mixers()[0][1].rope is not None
    assert (found[1].teacher.objective, found[2].teacher.objective) == ("blockwise", "kl")


def test_the_tables_of_the_page_are_those_of_the_committed_results():
    page = results.README.read_text()
    assert (
        results.with_tables(page, results.read()) == page and page.count("made by results.py") > 5
    )


def test_every_committed_result_is_written_by_a_command_of_the_page(tmp_path):
    """`results.py` collects it from a workdir of `run.py`, or `costs` or `compiled` computes it."""
    for folder in ("selected", "out"):
        (tmp_path / folder).mkdir()
    parts = (f"selected/{search.RESULT}", f"selected/{selecting.DONE}", decoding.DONE)
    for name in (*parts, finetuning.DONE):
        (tmp_path / name).write_text("{}")
    results.collect(tmp_path, tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    committed = {path.name for path in results.RESULTS.glob("*.json")}
    assert committed == written | {"costs.json", compiled.FILE.name}


def test_a_layer_s_error_fell_if_its_last_steps_are_below_the_first():
    arm = dict(
        mixer="gdn", start="copied", name="gdn-copied", layers=[3, 5, 7], step=[1, 2, 3, 4, 5]
    )
    arm |= dict(relative_error=[1.0] * 5, heldout_loss=[2.0], tokens_per_second=[None])
    arm |= dict(teacher_forward_tokens_per_second=1.0)
    arm["mse"] = [[4, 4, 4], [9, 5, 3], [1, 5, 3], [1, 5, 3], [1, 1.5, 7]]  # last 4: 3, 4.125, 4
    heads, _, row = tables.blockwise({"blockwise": [arm]}).splitlines()
    column = heads.split(" | ").index("layers whose error fell")
    assert row.split(" | ")[column] == "1 of 3"


@pytest.mark.parametrize("row", costs.ROWS)
def test_each_budget_is_compiled_with_a_sequence_for_each_chip(row, tmp_path):
    """In every part of a batch, on four chips; the command's words are what the parser takes."""
    words = compiled.command(row, tmp_path)
    given = (word.removeprefix("--config.") for word in words if word.startswith("--config."))
    overrides = [tuple(word.split("=")) for word in given]
    c = configs.load(words[words.index("--config") + 1], overrides)
    assert (c.mesh.data, c.mesh.fsdp) == (1, -1)
    assert c.data.batch_size // c.train.accumulate % 4 == 0


def test_the_table_of_the_compiler_says_what_was_not_compiled():
    one = dict(fits=True, lower_seconds=20.6, compile_seconds=580.0, flops=1e15, kernels=["a"])
    report = {
        "topology": "v5p:2x2x1",
        "step": one
        | dict(memory=dict(total=2**31, available=95 * 2**30, program=1))
        | dict(step_seconds_at_least=0.05, roofline=dict(limit="hbm", hbm=0.05)),
    }
    made = tables.compiled({"costs": {"a": {}, "b": {}}, "compiled": {"a": compiled.kept(report)}})
    assert made.splitlines()[2:] == [
        "| a | v5p:2x2x1 | 2.0 of 95.0 | yes | 0.05, hbm | 21 + 580 |",
        "| b | not compiled |  |  |  |  |",
    ]


def test_a_workdir_takes_the_teacher_and_the_settings_of_its_results(tmp_path):
    workdir, given = tmp_path / "work", run.stage_settings()
    workdir.mkdir()
    settings.keep(workdir, tmp_path / "typo", given)  # no result yet, so another may be given
    settings.keep(workdir, tmp_path / "teacher", given)
    (workdir / "student").mkdir()
    settings.keep(workdir, tmp_path / "teacher", given)
    with pytest.raises(RunError, match=r'with teacher "../teacher", which is now "../other"'):
        settings.keep(workdir, tmp_path / "other", given)
    with pytest.raises(RunError, match="with student.steps 64, which is now 32"):
        changed = given | {"student": given["student"] | {"steps": 32}}
        settings.keep(workdir, tmp_path / "teacher", changed)
    with pytest.raises(RunError, match="with student.keep true, which is now not set"):
        less = {k: v for k, v in given["student"].items() if k != "keep"}
        settings.keep(workdir, tmp_path / "teacher", given | {"student": less})


def test_a_workdir_of_unknown_settings_is_refused(tmp_path):
    (tmp_path / "student").mkdir()
    with pytest.raises(RunError, match="has no settings.json"):
        settings.keep(tmp_path, tmp_path / "teacher", run.stage_settings())


def test_a_stage_does_not_show_the_memory_of_an_earlier_one(tmp_path):
    """Pages are mapped and unmapped by hand: whether an allocator returns them is not the law."""
    size = 2**28
    with pytest.raises(KeyError), usage.measured(tmp_path, "large"), mmap.mmap(-1, size) as held:
        held.write(b"x" * size)
        raise KeyError
    with usage.measured(tmp_path, "small"):
        pass
    large, small = usage.read(tmp_path)
    assert [large["stage"], small["stage"]] == ["large, stopped", "small"]
    if large["peak_of"] == small["peak_of"] == "stage":
        assert large["peak_memory_bytes"] > small["peak_memory_bytes"] + size / 2
    else:  # a system that cannot reset the peak
        assert not usage.reset_peak()


def test_the_memory_of_a_stopped_stage_is_not_that_of_the_stage():
    lines = [
        dict(stage=name, wall_seconds=60, processor_seconds=60, peak_memory_bytes=gib * 2**30)
        for name, gib in (("select, stopped", 8), ("select", 4), ("blockwise: student", 2))
    ]
    rows = tables.usage({"usage": lines}).splitlines()[2:]
    assert rows[0] == "| select | 2.0 | 2.0 | 4.0 |" and rows[1].endswith("| 2.0 |")
    assert rows[2] == "| all | 3.0 |  | 4.0 |"  # stages run beside each other


def test_a_difference_of_one_sign_is_beyond_noise_whatever_its_outlier():
    worse = [*np.random.default_rng(0).uniform(1, 2, 7), 100.0]
    assert tables.verdict(worse, [0.0] * 8).endswith(", all 8 up, p 0.0078")
    assert tables.verdict([-x for x in worse[:3]] + worse[3:], [0.0] * 8).endswith("within noise")
    assert tables.verdict(worse[4:], [0.0] * 4).endswith(
        "within noise"
    )  # t: 4 pairs have no exact test


@pytest.mark.slow
def test_an_arm_is_trained_once_and_its_hybrid_decodes(tmp_path, in_root):
    save_pair(tmp_path, dict(kind="gdn"), layers=(1,))
    arm = arms.Arm("nha", "calibrated", 2, 32, 2, "arm", calibration=256)
    arms.run(arm, tmp_path / "teacher", tmp_path)
    found = arms.read(tmp_path, "arm")
    assert (found["step"], found["layers"]) == ([1, 2], [0, 1]) and len(found["mse"]) == 2
    assert not (tmp_path / "arm" / "student").exists()
    arms.run(arm, tmp_path / "teacher", tmp_path)
    assert [line["stage"] for line in usage.read(tmp_path)] == ["blockwise: arm"]
    models = {name: tmp_path / name for name in ("teacher", "student")}
    decoding.run(models, "student", tmp_path, contexts=(64,))
    teacher, student = json.loads((tmp_path / decoding.DONE).read_text())
    assert student["state_bytes_float32"] < teacher["state_bytes_float32"]


@pytest.mark.slow
def test_the_recipe_takes_the_model_and_the_tokenizer_of_the_student(tmp_path, in_root):
    save_pair(tmp_path, dict(kind="gdn"))
    arg = f"student={tmp_path / 'student'},teacher={tmp_path / 'teacher'},objective=kl,steps=40"
    c = configs.load(f"{recipe.__file__}:{arg}", [])
    assert c.model.layout.names == ("gdn", "gdn") and c.data.tokenizer.kind == "bytes"
    assert (c.teacher.objective, c.train.steps, c.optimizer.lr) == ("kl", 40, 1e-4)
