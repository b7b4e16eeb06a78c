"""Four layers of attention and 32 experts, of which a token goes to 4: experts split over chips.

It is for `hybridlm compile`: what the all-to-all of split experts costs in memory and traffic
(docs/moe.md). Each of 4 groups of 4 chips has all experts, 8 a chip; `--mesh.expert 1 --mesh.fsdp 16`
splits no experts. The data is a placeholder, the bundled text as bytes.

Hardware: v5e:4x4 (16 chips); docs/moe.md has the compiler's memory and traffic.
Expected: unknown; it has not been trained, because no such slice was available.
Run:      hybridlm train --config configs/scale/experts.py --workdir runs/experts
Compile:  hybridlm compile --config configs/scale/experts.py --topology v5e:4x4
"""

from ml_collections import ConfigDict

from common import parse_arg, smoke


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    flags = parse_arg(arg, smoke=False)
    c = ConfigDict()
    c.seed = 0
    c.model = ConfigDict()
    c.model.width, c.model.depth, c.model.pattern = 1024, 4, "full"
    c.model.mixers = ConfigDict()
    c.model.mixers.full = dict(kind="attention", heads=8, kv_heads=8)
    c.model.mlp = dict(kind="moe", experts=32, top_k=4, hidden=512)
    c.data = ConfigDict()
    c.data.sources = dict(
        addresses=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
    )
    c.data.seq_len, c.data.batch_size = 2048, 64
    c.optimizer = dict(lr=1e-3)
    c.train = ConfigDict()
    c.train.steps, c.train.dtype = 10_000, "bfloat16"
    c.train.log_every, c.train.eval_every, c.train.checkpoint_every = 10, 1000, 1000
    c.mesh = dict(data=-1) if flags["smoke"] else dict(data=1, fsdp=-1, expert=4)
    return smoke(c) if flags["smoke"] else c
