"""What pages assume: runs, models and names that their reader has."""

import dataclasses
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from hybridlm import cli
from hybridlm.data.tokenizers import ByteTokenizer, TokenizerConfig, open_tokenizer
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.probes.needles import needle_prompts
from hybridlm.runs import OpenedModel, open_model, save_model
from tests.distill.subjects import FULL, opened
from tests.models.small import model_config

DEMO = ("train", "--config", "configs/demo.py:smoke", "--workdir")
QUICK = ("--config.data.bigram_baseline=False", "--config.train.tensorboard=False")
WORDS = "the union of states shall be a hybrid and its windows are short".split()


def link(root: pathlib.Path, top: pathlib.Path) -> None:
    """Links a folder to the parts of the checkout that commands of pages name."""
    for name in ("benchmarks", "configs", "data", "docs", "experiments", "tests"):
        (top / name).symlink_to(root / name)


def train_demo(*overrides: str, workdir: str = "runs/demo") -> None:
    """The demo in its smoke form, at 256 tokens so that tasks and probes fit."""
    code = cli.main([*DEMO, workdir, "--config.data.seq_len=256", *QUICK, *overrides])
    assert code == 0


def of_probes() -> dict[str, Any]:
    """`model`, `params` and `prompts` of the demo."""
    m = open_model("runs/demo")
    prompts, _ = needle_prompts(m.tokenizer, length=256, count=2)
    return dict(model=m.model, params=m.params, prompts=prompts)


def of_evals() -> dict[str, Any]:
    """The reader's tokenizer."""
    return dict(tokenizer=ByteTokenizer())


def of_reports() -> dict[str, Any]:
    """A deeper demo, its model folder, a sweep of two runs; the reader's tokens and weights."""
    shutil.rmtree("runs/demo")
    train_demo("--config.train.steps=4", "--config.model.depth=6")
    save_model(open_model("runs/demo"), "runs/demo-model")
    for window in (64, 8):
        change = ("--config.train.steps=4", f"--config.model.mixers.swa.window={window}")
        train_demo(*change, workdir=f"runs/window/swa.window={window}")
    rng = np.random.default_rng(0)
    weights = np.tril(rng.random((2, 5, 5))).astype(np.float32)
    return dict(tokens=list("a tex"), weights=weights / weights.sum(-1, keepdims=True))


def of_analysis() -> dict[str, Any]:
    """The model that the page on analysis opens."""
    mixers = dict(
        gdn=dict(kind="gdn", heads=2, head_dim=8),
        full=dict(kind="attention", heads=4, kv_heads=2, rope=None),
        nha=dict(kind="nha", heads=4, slots=4, window=6),
    )
    config = ModelConfig(
        width=32,
        depth=3,
        vocab_size=260,
        pattern="gdn full nha",
        mixers=mixers,
        mlp=dict(kind="swiglu", hidden=48),
    )
    model = Model.of(config)
    tokenizer = open_tokenizer(TokenizerConfig())
    params = model.init(jax.random.key(0))
    made = OpenedModel(pathlib.Path(), model, params, tokenizer, None, {}, None)
    save_model(made, "models/hybrid")
    return {}


def of_distill() -> dict[str, Any]:
    """A teacher, and text to calibrate with."""
    save_model(_transformer(), "TEACHER")
    pathlib.Path("text.txt").write_text(" ".join(WORDS * 40))
    return {}


def of_convert() -> dict[str, Any]:
    """A checkpoint of transformers, and a run's model that fits a class of transformers."""
    save_model(_transformer(), "runs/mine")
    assert cli.main(["convert", "export", "--from", "runs/mine", "--out", "DIR"]) == 0
    return {}


def _transformer() -> OpenedModel:
    config = model_config("full", depth=3, mixers=dict(full=FULL), vocab_size=258)
    return dataclasses.replace(opened(config), tokenizer=ByteTokenizer())
