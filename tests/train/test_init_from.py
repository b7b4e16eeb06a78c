"""A run begins with the parameters of another run, by name, whatever differs that may."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from hybridlm.analysis.report import write_report
from hybridlm.config import to_dict
from hybridlm.data import train_bpe
from hybridlm.errors import UserError
from hybridlm.models.trainable import Trainable
from hybridlm.runs import checkpoint, lineage, metrics, open_model, save_model
from hybridlm.runs.json_files import write_json
from hybridlm.train import setup
from hybridlm.train.init_from import start_state
from hybridlm.train.init_plan import make_plan
from hybridlm.train.loop import train
from tests.train.stages import config, drawn_run, model_and_state

TEXTS = [
    "the quick brown fox jumps over the lazy dog " * 5,
    "pack my box with five dozen jugs " * 5,
]


def begun(new):
    """(model, fresh state, state after `init`) of a config."""
    plan = make_plan(*setup.resolve(new))
    model, fresh = model_and_state(new)
    kept = jax.tree.map(np.array, fresh)
    return model, kept, jax.tree.map(np.asarray, start_state(plan, fresh)[0])


def moments(state):
    """The trees of the optimizer state that are like the parameters: Adam's two."""
    adam = state["opt_state"][0]
    return adam.mu, adam.nu


def same(found, expected):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), found, expected))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(path, model, state) of a run of four layers, two kinds in turn."""
    path = tmp_path_factory.mktemp("source") / "run"
    old = config()
    return path, model_and_state(old)[0], drawn_run(path, old)


OTHERS = {
    "the same": {},
    "other names, folding and windows": dict(
        prefix="one two",
        pattern="one two",
        mixers=dict(
            one=dict(kind="attention", heads=2, rope=dict(theta=1e6)),
            two=dict(kind="short_conv"),
        ),
    ),
    "no folding": dict(pattern="swa rec full rec", depth=4),
    "all in the suffix": dict(pattern="full", suffix="full rec swa rec"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_parameters_and_moments_are_those_of_the_same_name(case, source):
    path, old, state = source
    new = config(OTHERS[case], data=dict(seq_len=64), init=dict(path=str(path), optimizer=True))
    model, _, found = begun(new)
    assert same(model.by_name(found["params"]), old.by_name(state["params"]))
    for new_moment, old_moment in zip(moments(found), moments(state)):
        assert same(model.by_name(new_moment), old.by_name(old_moment))
    assert found["opt_state"][0].count == 4 and found["step"] == 0
    assert found["guard"]["skipped"] == 0


def test_without_the_optimizer_only_parameters_are_taken(source):
    path, old, state = source
    model, fresh, found = begun(config(init=dict(path=str(path))))
    assert same(model.by_name(found["params"]), old.by_name(state["params"]))
    assert same(found["opt_state"], fresh["opt_state"])


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_the_state_of_every_optimizer_goes_on_with_its_step(name, tmp_path):
    old = config(optimizer=dict(name=name))
    state = drawn_run(tmp_path / "run", old)
    init = dict(path=str(tmp_path / "run"), optimizer=True, keep_step=True)
    assert same(begun(config(optimizer=dict(name=name), init=init))[2], state)


def test_frozen_parameters_and_the_moving_average_have_their_own_part(tmp_path):
    """What the source froze has a moment of 0; the average goes on with the steps, else anew."""
    old = config(optimizer=dict(freeze="layers.0|embedding"), ema_decay=0.9)
    state = drawn_run(tmp_path / "run", old)
    init = dict(path=str(tmp_path / "run"), optimizer=True, keep_step=True)
    assert same(
        begun(config(optimizer=dict(freeze=old.optimizer.freeze), init=init, ema_decay=0.9))[2],
        state,
    )
    model, _, found = begun(config(optimizer=dict(freeze="layers.3"), init=init, ema_decay=0.5))
    params, ema = model.by_name(state["params"]), trained(model, "layers.3", found["ema"])
    old_ema = trained(model, "layers.0|embedding", state["ema"])
    old_mean = trained(model, "layers.0|embedding", moments(state)[0])
    for name, mean in trained(model, "layers.3", moments(found)[0]).items():
        assert np.array_equal(mean, old_mean.get(name, np.zeros_like(mean))), name
        assert np.array_equal(ema[name], old_ema.get(name, params[name])), name
    anew = config(init=dict(path=str(tmp_path / "run")), ema_decay=0.9)
    found = begun(anew)[2]
    assert same(found["ema"], found["params"]) and same(found["params"], state["params"])


def trained(model, freeze, part):
    """The arrays of a tree of the trained part, by parameter name."""
    trainable = Trainable.of(model, freeze)
    zeros = jax.tree.map(lambda x: np.full(x.shape, np.nan), model.abstract)
    whole = model.by_name(trainable.put(zeros, part))
    return {name: x for name, x in whole.items() if not np.isnan(x).any()}


def test_globs_choose_what_starts_fresh_or_is_left_out(source):
    path, old, state = source
    new = config(
        dict(depth=5, mlp=dict(kind="swiglu", hidden=16), tie_embeddings=True),
        init=dict(path=str(path), optimizer=True, fresh="head|layers.4|layers.1.*.input_gate"),
    )
    model, fresh, found = begun(new)
    taken = old.by_name(state["params"])
    news = [n for n in model.by_name(found["params"]) if n.startswith("layers.4.")]
    gates = [n for n in taken if n.startswith("layers.1.") and ".input_gate." in n]
    assert news and gates
    for name, value in model.by_name(found["params"]).items():
        expected = model.by_name(fresh["params"]) if name in {*news, *gates} else taken
        assert np.array_equal(value, expected[name]), name
    for moment in moments(found):
        assert all(not model.by_name(moment)[name].any() for name in (*news, *gates))


def test_a_larger_vocabulary_keeps_the_old_rows(source):
    path, _, state = source
    init = dict(path=str(path), optimizer=True)
    _, fresh, found = begun(config(dict(vocab_size=448), init=init))
    trees = [(t["params"], f["params"]) for t, f in [(found, fresh)]]
    trees += zip(moments(found), moments(fresh))
    for (new, initial), old in zip(trees, (state["params"], *moments(state)), strict=True):
        assert np.array_equal(new["embedding"][:320], old["embedding"])
        assert np.array_equal(new["embedding"][320:], initial["embedding"][320:])
        assert np.array_equal(new["head"]["kernel"][:, :320], old["head"]["kernel"])
        assert np.array_equal(new["head"]["kernel"][:, 320:], initial["head"]["kernel"][:, 320:])
    assert not moments(found)[0]["embedding"][320:].any()


def tokenizer(path, size=290, words=()):
    """A BPE of `size` ids, with added tokens."""
    train_bpe(TEXTS, size - len(words), path)
    if words:
        content = json.loads(path.read_text())
        like = content["added_tokens"][0]
        content["added_tokens"] += [
            {**like, "id": size - len(words) + i, "content": w} for i, w in enumerate(words)
        ]
        path.write_text(json.dumps(content))
    return dict(tokenizer=dict(kind="hf", path=str(path)))


def test_a_tokenizer_with_more_ids_keeps_the_rows_of_the_old_ones(tmp_path):
    """Rows that only filled up the old vocabulary start fresh."""
    old = tokenizer(tmp_path / "old.json", 290)
    new = tokenizer(tmp_path / "new.json", 292, ["<|user|>", "<|assistant|>"])
    state = drawn_run(tmp_path / "run", config(data=old))
    run = dict(path=str(tmp_path / "run"))
    _, fresh, found = begun(config(data=new, init=run))
    embedding = found["params"]["embedding"]
    assert np.array_equal(embedding[:290], state["params"]["embedding"][:290])
    assert np.array_equal(embedding[290:], fresh["params"]["embedding"][290:])
    other = config(data=tokenizer(tmp_path / "other.json", 285), init=run)
    with pytest.raises(UserError, match=r"another tokenizer .*init.fresh=\"embedding\|head\""):
        make_plan(*setup.resolve(other))
    model, fresh, found = begun(
        config(data=tokenizer(tmp_path / "n.json", 285), init={**run, "fresh": "embedding|head"})
    )
    assert np.array_equal(found["params"]["embedding"], fresh["params"]["embedding"])


REFUSED = {
    "missing": (
        dict(depth=5),
        {},
        r"missing there: layers.4.mixer.*init.fresh=\"layers.4\"",
    ),
    "extra": (
        dict(tie_embeddings=True),
        {},
        r"not in this model: head.kernel.*init.fresh=\"head\"",
    ),
    "shape": (
        dict(mlp=dict(kind="swiglu", hidden=24)),
        {},
        r"another shape: layers.0.mlp.\w+.kernel \((16, 16|16, 16)\) instead of",
    ),
    "smaller vocabulary": (dict(vocab_size=258), {}, r"embedding \(320, 16\) instead of \(258, 16"),
    "glob": ({}, dict(fresh="heads"), "init.fresh has 'heads', which matches no name"),
    "step": ({}, dict(step=7), "holds no checkpoint of step 7: it has 4"),
    "path": ({}, dict(path="nowhere"), "nowhere is no run and no model folder"),
    "keep_step": (
        {},
        dict(optimizer=True, keep_step=True, steps=4),
        "train.steps is 4, and with init.keep_step the run begins at step 4",
    ),
    "optimizer": ({}, dict(optimizer=True, name="muon"), "was trained with adamw, not with muon"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(case, source):
    model, init, message = REFUSED[case]
    init = {"path": str(source[0]), **init}
    steps, name = init.pop("steps", 6), init.pop("name", "adamw")
    new = config(model, optimizer=dict(name=name), init=init, steps=steps)
    with pytest.raises(UserError, match=message) as caught:
        make_plan(*setup.resolve(new))
    assert "\n" not in str(caught.value)


def test_a_model_folder_is_a_source_without_optimizer_state(source, tmp_path):
    path, old, state = source
    save_model(open_model(path), tmp_path / "model")
    new = config(init=dict(path=str(tmp_path / "model")))
    model, _, found = begun(new)
    assert same(model.by_name(found["params"]), old.by_name(state["params"]))
    with pytest.raises(UserError, match="is a model folder, which holds no optimizer state"):
        make_plan(*setup.resolve(config(init=dict(path=str(tmp_path / "model"), optimizer=True))))
    save_model(dataclasses.replace(open_model(path), step=None), tmp_path / "average")
    counted = dict(path=str(tmp_path / "average"), optimizer=True, keep_step=True)
    with pytest.raises(UserError, match="is a model folder, which holds no optimizer state"):
        make_plan(*setup.resolve(config(init=counted)))


def test_a_begun_run_names_its_lineage_and_no_longer_needs_its_source(tmp_path, in_root, command):
    """A chain of two sources shows whole; the run starts again when its source is gone."""
    path, run, small = tmp_path / "source", tmp_path / "run", dict(depth=1, tie_embeddings=True)
    drawn_run(path, config(small))
    first = lineage.Origin("runs/first", 9, "ab" * 32)
    lineage.write(path, [first])
    sha256 = checkpoint.digest(open_model(path).params)
    new = config(small, init=dict(path=str(path), optimizer=True), steps=2)
    assert train(new, run) == 0
    assert lineage.read(run) == [lineage.Origin(str(path), 4, sha256, 1000, True), first]
    said, page = command("inspect", run)[1], write_report(run).read_text()
    for shown in (said, page):
        assert sha256 in shown and first.parameters_sha256 in shown
    whole = checkpoint.digest(checkpoint.load_numpy(run)[1])

    shutil.rmtree(path)
    shutil.rmtree(run / "checkpoints" / "2")
    assert checkpoint.steps(run) == [0]
    assert train(new, run) == 0
    assert checkpoint.digest(checkpoint.load_numpy(run)[1]) == whole
    assert [r["step"] for r in metrics.read(run / metrics.FILE) if r["kind"] == "train"] == [1, 2]


PROGRAM = """
import sys
import jax, numpy as np
from hybridlm import config as configs
from hybridlm.runs.checkpoint import digest
from hybridlm.train import setup
from hybridlm.train.init_from import start_state
from hybridlm.train.init_plan import make_plan

config, tokenizer = setup.resolve(configs.read_json(sys.argv[1]))
plan = make_plan(config, tokenizer)
lowered = setup.lower_step(config, tokenizer.token_bytes(), jax.devices())
state, _ = start_state(plan, lowered.init_state(config.seed))
placed = jax.tree.map(lambda x, y: x.sharding == y.sharding, state, lowered.abstract)
assert jax.tree.all(placed), placed
split = [x for x in jax.tree.leaves(state) if not x.is_fully_replicated]
print(len(split), digest(jax.tree.map(np.asarray, state)))
"""


@pytest.mark.slow
def test_every_mesh_begins_with_the_same_bits(source, tmp_path, in_root):
    """New rows of a larger vocabulary included, where shards hold old and new ones."""
    found = {}
    for devices, mesh in ((1, {}), (4, dict(data=1, fsdp=2, tensor=2))):
        init = dict(path=str(source[0]), optimizer=True)
        new = to_dict(config(dict(vocab_size=512), init=init, data=dict(batch_size=4)))
        write_json(tmp_path / "config.json", {**new, "mesh": {**new["mesh"], **mesh}})
        flags = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "config.json")],
            env=os.environ | dict(XLA_FLAGS=f"{flags} --xla_backend_optimization_level=0"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found[devices] = done.stdout.split()
    assert found[4][1] == found[1][1] and int(found[4][0]) > 20
