"""Three layers of the toy RWKV-7, then one of full NoPE attention."""

from ml_collections import ConfigDict

from common import parse_arg, small_run, smoke


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    flags = parse_arg(arg, smoke=False)
    c = small_run()
    c.model = ConfigDict()
    c.model.width, c.model.depth, c.model.pattern = 128, 4, "mixer*3 full"
    c.model.mixers = ConfigDict()
    c.model.mixers.mixer = dict(kind="toy_rwkv7", heads=4)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
