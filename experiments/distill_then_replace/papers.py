"""Blockwise distillation at the budgets of Distill-then-Replace (arXiv 2601.11667): 100M tokens a mixer.

The argument is "model=NAME,mixer=KIND", with NAME one of qwen2_5_1_5b, llama_3_2_3b, llama_3_1_8b, or a
model of `hybridlm gallery` with softmax attention. The paper
trains all layers' mixers at once on 100M tokens, and gives neither rate nor length: rate, schedule, length and
batch are those of HALO's stage 1 (arXiv 2601.22156). The architecture of the teacher is written here, so that
the step can be compiled and its cost printed without the checkpoint; its data is to be replaced by the paper's
(Nemotron-CC and Redstone-QA) and the tokenizer by the teacher's.

Hardware: the paper took 2.5, 4 and 8 hours on one A800 of 80 GB (1.5B, 3B, 8B). Not run here.
Expected: the paper states no errors of layers; README.md has this config's cost.
Run:      hybridlm train --config experiments/distill_then_replace/papers.py:model=llama_3_2_3b,mixer=gdn
          --workdir DIR, after `hybridlm distill transfer checkpoints/llama_3_2_3b --mixer gdn --out
          checkpoints/llama_3_2_3b-gdn`
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from hybridlm.distill.transfer import student_config
from hybridlm.gallery import catalogue
from hybridlm.models.settings import ModelConfig
from hybridlm.settings.plain import to_dict

CHECKPOINTS = pathlib.Path("checkpoints")
TOKENS, LENGTH, BATCH = 100_000_000, 512, 32


def _llama(factor: float) -> dict[str, Any]:
    return dict(theta=500_000.0, llama3=dict(factor=factor, length=8192))


#: config.json of each model at its publisher: sizes, RoPE, biases.
MODELS: dict[str, dict[str, Any]] = {
    "qwen2_5_1_5b": dict(
        width=1536,
        depth=28,
        mixer=dict(heads=12, kv_heads=2, head_dim=128, bias="qkv", rope=dict(theta=1e6)),
        hidden=8960,
        vocab_size=151_936,
        norm_eps=1e-6,
        tie_embeddings=True,
    ),
    "qwen3_1_7b": dict(  # HALO's, in halo.py
        width=2048,
        depth=28,
        mixer=dict(heads=16, kv_heads=8, head_dim=128, qk_norm=True, rope=dict(theta=1e6)),
        hidden=6144,
        vocab_size=151_936,
        norm_eps=1e-6,
        tie_embeddings=True,
    ),
    "llama_3_2_3b": dict(
        width=3072,
        depth=28,
        mixer=dict(heads=24, kv_heads=8, head_dim=128, rope=_llama(32.0)),
        hidden=8192,
        vocab_size=128_256,
        norm_eps=1e-5,
        tie_embeddings=True,
    ),
    "llama_3_1_8b": dict(
        width=4096,
        depth=32,
        mixer=dict(heads=32, kv_heads=8, head_dim=128, rope=_llama(8.0)),
        hidden=14_336,
        vocab_size=128_256,
        norm_eps=1e-5,
        tie_embeddings=False,
    ),
}


def teacher(name: str) -> ModelConfig:
    """The architecture of a published model: one of MODELS, or of the gallery."""
    if name not in MODELS:
        return catalogue.load(name).config
    sizes = dict(MODELS[name])
    mixer, hidden = sizes.pop("mixer"), sizes.pop("hidden")
    return ModelConfig(
        pattern="full",
        mixers=dict(full=dict(kind="attention", **mixer)),
        mlp=dict(kind="swiglu", hidden=hidden),
        **sizes,
    )


def data(name: str, length: int, batch: int) -> dict[str, Any]:
    """The text of this repository, with the checkpoint's tokenizer, or with bytes where it is not there."""
    tokenizer = CHECKPOINTS / name / "tokenizer.json"
    return dict(
        sources=dict(
            text=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz"),
        ),
        seq_len=length,
        batch_size=batch,
        tokenizer=dict(kind="hf", path=str(tokenizer))
        if tokenizer.exists()
        else dict(kind="bytes"),
    )


def get_config(arg: str = "") -> ConfigDict:
    given = dict(model="qwen2_5_1_5b", mixer="gdn")
    given |= dict(item.split("=", 1) for item in arg.split(",") if item)
    name, kind = given["model"], given["mixer"]
    published = teacher(name)
    c = ConfigDict()
    c.model = to_dict(student_config(published, dict(kind=kind)))
    c.data = data(name, LENGTH, BATCH)
    c.optimizer = dict(
        lr=1e-3,
        schedule="cosine",
        warmup_steps=50,
        final_lr_fraction=0.01,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    c.train = dict(
        steps=round(TOKENS / (LENGTH * BATCH)),
        dtype="bfloat16",
        eval_every=1000,
        checkpoint_every=500,
    )
    c.init = dict(path=str(CHECKPOINTS / f"{name}-{kind}"))
    c.teacher = dict(path=str(CHECKPOINTS / name), objective="blockwise", model=to_dict(published))
    return c
