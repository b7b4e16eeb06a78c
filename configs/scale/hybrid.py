"""The model of the recipes in this folder: a hybrid of three mixers at the size of a real run.

This file is not a recipe. `hybrid_1b.py`, `hybrid_7b.py` and `hybrid_70b.py` set the sizes.
"""

from ml_collections import ConfigDict

from common import parse_arg, smoke

HEAD_DIM = 128
# Gathers parameters before a product, not in a loop around it: such loops (windowed einsums) reread
# activations. docs/scale.md has the figures.
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}


def hybrid(
    arg: str | None,
    *,
    width: int,
    units: int,
    hidden: int,
    kv_heads: int,
    window: int,
    seq_len: int,
    batch_size: int,
    lr: float,
    steps: int,
    tensor: int = 1,
    remat: str = "full",
    tie_embeddings: bool = False,
) -> ConfigDict:
    """Layers of Gated DeltaNet, sliding-window attention with RoPE and full attention with NoPE.

    The three alternate, all with heads of 128. The data is a placeholder: the bundled text, as bytes,
    in a vocabulary of the size of a real tokenizer's. Set your own with `data.sources` and
    `data.tokenizer`.

    Args:
      arg: "" or "smoke".
      units: how often the three layers repeat.
      hidden: hidden size of the MLP. kv_heads: key/value heads of both kinds of attention.
      window: in tokens.
      batch_size: sequences of `seq_len` tokens in a step, over all chips.
      tensor: size of `mesh.tensor`, the chips that share heads and hidden units; the other chips
        shard the parameters (`mesh.fsdp`).
      remat: "full", or "unit" for a deep model, whose layers' inputs would take more memory than the
        activations of three layers.
    """
    flags = parse_arg(arg, smoke=False)
    heads = width // HEAD_DIM
    if flags["smoke"]:
        heads = kv_heads = 2
    c = ConfigDict()
    c.seed = 0

    c.model = ConfigDict()
    c.model.width, c.model.depth, c.model.pattern = width, 3 * units, "rec swa full"
    c.model.mixers = ConfigDict()
    attention = dict(kind="attention", heads=heads, kv_heads=kv_heads, head_dim=HEAD_DIM)
    c.model.mixers.rec = dict(kind="gdn", heads=heads, head_dim=HEAD_DIM, value_dim=HEAD_DIM)
    c.model.mixers.swa = dict(attention, window=window, qk_norm=True)
    c.model.mixers.full = dict(attention, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=hidden)
    c.model.tie_embeddings = tie_embeddings
    c.model.vocab_size = None if flags["smoke"] else 65_536
    c.model.z_loss = 1e-4

    c.data = ConfigDict()
    c.data.sources = dict(
        addresses=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
    )
    c.data.seq_len, c.data.batch_size = seq_len, batch_size

    c.optimizer = dict(lr=lr, schedule="cosine", warmup_steps=2000, weight_decay=0.1)
    c.train = ConfigDict()
    c.train.steps, c.train.remat, c.train.dtype = steps, remat, "auto"
    c.train.compiler_options = dict(tpu=TPU_OPTIONS)
    c.train.log_every, c.train.eval_every, c.train.checkpoint_every = 10, 1000, 1000
    c.train.eval_sequences = 2 * batch_size
    c.mesh = dict(data=-1) if flags["smoke"] else dict(data=1, fsdp=-1, tensor=tensor)
    return smoke(c) if flags["smoke"] else c
