"""`hybridlm probe` on a run with two checkpoints: its files and refusals."""

import json

import jax
import numpy as np
import pytest

from hybridlm import config
from hybridlm.config import to_dict
from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.models.params import Model
from hybridlm.probes.needles import needle_prompts
from hybridlm.probes.registry import PROBES
from hybridlm.probes.settings import ProbeSettings
from hybridlm.runs import checkpoint, json_files, open_model, save_model, workdir
from hybridlm.train import setup

SMALL = dict(width=16, depth=3, mlp=dict(kind="swiglu", hidden=16))


@pytest.fixture(scope="module")
def place(tmp_path_factory, request):
    """A folder whose runs/demo has untrained checkpoints 4 and 8 of a small demo model."""
    root, top = request.config.rootpath, tmp_path_factory.mktemp("probing")
    for name in ("configs", "data", "docs"):
        (top / name).symlink_to(root / name)
    overrides = [(f"model.{k}", repr(v)) for k, v in SMALL.items()] + [("data.seq_len", "256")]
    loaded = config.load(f"{root / 'configs/demo.py'}:smoke", overrides)
    loaded, _ = setup.resolve(loaded)
    run = top / "runs/demo"
    run.mkdir(parents=True)
    json_files.write_json(run / workdir.CONFIG, to_dict(loaded))
    model, rng = Model.of(loaded.model), np.random.default_rng(0)
    checkpoints = checkpoint.Checkpoints(
        run, loaded.train.keep_checkpoints, loaded.train.keep_every
    )
    for step in (4, 8):
        params = jax.tree.map(
            lambda p: jax.numpy.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), model.abstract
        )
        checkpoints.save(step, {"params": params}, {"step": step})
        checkpoints.wait()
    checkpoints.close()
    return top


def test_all_checkpoints_are_probed(place, monkeypatch, command, tmp_path):
    monkeypatch.chdir(place)
    settings = ["--samples", 1, "--step", "all", "--out", tmp_path]
    for _ in range(2):  # the second time appends
        code, out, _ = command(
            "probe", "--workdir", "runs/demo", "--probes", "qk_distance", *settings
        )
        assert code == 0 and "step 8: qk_distance: " in out
    records = [json.loads(line) for line in (tmp_path / "probes.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == 2 * (8 * [4] + 8 * [8])
    assert all((r["distance"] > 0) == (r["step"] == 4) and r["length"] == 256 for r in records)


def test_a_model_folder_is_probed(place, monkeypatch, command, refusal, tmp_path):
    monkeypatch.chdir(place)
    save_model(open_model("runs/demo", 4), tmp_path / "model")
    words = ["--probes", "heads,qk_distance", "--samples", 1, "--step", "all"]
    words += ["--out", tmp_path / "out"]
    code, out, err = command("probe", "--workdir", tmp_path / "model", *words)
    assert code == 0, err
    lines = (tmp_path / "out" / "probes.jsonl").read_text().splitlines()
    kinds = {(r["kind"], r["step"]) for r in map(json.loads, lines)}
    assert kinds == {(kind, 4) for kind in ("retrieval_heads", "entropy", "qk_distance")}
    words = ["--probes", "gradient_influence", "--out", tmp_path / "out"]
    said = refusal("probe", "--workdir", tmp_path / "model", *words)
    assert "gradient_influence reads the held-out data of a run, and" in said


BAD = [
    (["--probes", "head"], "--probes 'head' is unknown: did you mean 'heads'?"),
    (["--probes", "entropy,entropy"], "--probes names one twice"),
    (["--step", "3"], "holds no checkpoint of step 3: it has 4, 8"),
    (["--step", "last"], "--step must be a whole number or all, not 'last'"),
    (["--length", "64"], "needle does not fit 64 tokens"),
    (["--samples", "0"], "--samples must be at least 1, not 0"),
    (["--classified", "9"], "--classified must be at least 40, not 9"),
    (["--by", "size"], "--by is 'size': valid are: copy, mass"),
    (["--windows", "4,x"], "--windows must be whole numbers"),
    (["--windows", "0"], "--windows must be at least 1"),
    (["--layers", "fulll"], "--layers 'fulll' is no layer of this model"),
    (["--layers", "7"], "--layers '7' is no layer of this model"),
    (
        ["--probes", "gradient_influence", "--length", "9999999"],
        "does not fit 9,999,999 tokens: the run's held-out text has",
    ),
    (["--workdir", "configs"], "configs is no run"),
]


@pytest.mark.parametrize("words, sentence", BAD, ids=[" ".join(w) for w, _ in BAD])
def test_an_impossible_probe_is_refused_in_one_sentence(
    place, monkeypatch, refusal, tmp_path, words, sentence
):
    monkeypatch.chdir(place)
    settings = {"--workdir": "runs/demo", "--probes": "entropy", "--samples": "1"}
    settings |= {"--out": str(tmp_path / "out")} | dict(zip(words[::2], words[1::2]))
    assert sentence in refusal("probe", *(w for item in settings.items() for w in item))


def test_the_answer_repeats_the_needle():
    tokenizer = ByteTokenizer()
    made, labels = needle_prompts(tokenizer, 256, 12, choices=("1234567", "7654321"))
    assert set(labels) == {0, 1} and made.tokens_NT.shape[1] <= 256
    for tokens, rows, needle, label in zip(made.tokens_NT, made.rows_NQ, made.needle_NT, labels):
        value = ("1234567", "7654321")[label]
        assert tokenizer.decode(tokens[needle]) == value == tokenizer.decode(tokens[rows + 1])
        assert rows[0] > np.flatnonzero(needle).max()
        assert tokenizer.decode(tokens[: rows[0] + 1]).endswith(" is ")


def test_the_default_settings_are_valid_for_all_probes():
    ProbeSettings(tuple(PROBES))
