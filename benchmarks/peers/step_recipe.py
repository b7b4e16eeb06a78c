"""The recipe of the steps that `compile_peers.py` compiles; the argument names one.

Compile: hybridlm compile --config benchmarks/peers/step_recipe.py:dense --topology v5e:4x4
"""

from typing import NamedTuple

from ml_collections import ConfigDict


class Shape(NamedTuple):
    """Sizes of a step, which both sides take.

    Attributes:
      depth: layers. heads, kv_heads, head_dim: of attention. mlp: hidden units of the SwiGLU.
      length: tokens of a sequence. rows: sequences of a step, over all chips.
      delta: whether three layers of four are Gated DeltaNet, with as many heads of that size.
    """

    depth: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    length: int
    rows: int
    delta: bool = False


SHAPES = {
    "dense": Shape(20, 2048, 16, 8, 128, 5632, 32_000, 4096, 64),
    "llama7b": Shape(32, 4096, 32, 32, 128, 11_008, 32_000, 8192, 128),
    "delta": Shape(20, 2048, 16, 8, 128, 5632, 32_000, 4096, 64, delta=True),
}


def get_config(arg: str) -> ConfigDict:
    shape = SHAPES[arg]
    c = ConfigDict()
    full = dict(kind="attention", heads=shape.heads, kv_heads=shape.kv_heads)
    full |= dict(head_dim=shape.head_dim)
    c.model = ConfigDict()
    c.model.width, c.model.depth = shape.width, shape.depth
    c.model.vocab_size, c.model.tie_embeddings = shape.vocab, False
    c.model.mlp = dict(kind="swiglu", hidden=shape.mlp)
    if shape.delta:
        size = shape.head_dim
        rec = dict(kind="gdn", heads=shape.heads, head_dim=size, value_dim=size)
        c.model.mixers = dict(rec=rec, full=full | dict(qk_norm=True, output_gate=True))
        c.model.pattern = "rec rec rec full"
    else:
        c.model.mixers, c.model.pattern = dict(full=full), "full"
    text = dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
    c.data = dict(sources=dict(text=text), seq_len=shape.length, batch_size=shape.rows)
    c.optimizer = dict(lr=3e-4, schedule="cosine", warmup_steps=2000, weight_decay=0.1)
    c.train = dict(steps=10_000, remat="full", dtype="bfloat16")
    c.mesh = dict(data=1, fsdp=-1)
    return c
