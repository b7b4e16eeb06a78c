"""How each reference layer's weights become those of our mixer.

A function gives (the mixer's settings, its parameters as a nested dict) for a fixture's weights
and settings. PyTorch's linear weights are (out, in) and its convolutions (channels, 1, taps) with
the oldest tap first; ours are (in, out) and (taps, channels) with the current token's first.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Weights = dict[str, jax.Array]
Mapped = tuple[dict[str, Any], dict[str, Any]]
MAPPINGS: dict[str, Callable[[Weights, dict[str, Any]], Mapped]] = {}


def mapping(function):
    """Registers a mapping under the fixture's name, which is its own."""
    MAPPINGS[function.__name__] = function
    return function


def linear(weight: jax.Array) -> dict:
    return dict(kernel=weight.T)


def taps(weight: jax.Array) -> jax.Array:
    """A depthwise convolution's (channels, 1, taps)."""
    return weight[:, 0, ::-1].T


def split(weight: jax.Array, *sizes: int) -> list[jax.Array]:
    """Parts of the first axis, one after the other."""
    assert sum(sizes) == weight.shape[0], f"{sizes} do not add up to {weight.shape[0]}"
    return jnp.split(weight, np.cumsum(sizes)[:-1])


def halves(weight: jax.Array, heads: int, kept: int = 0) -> jax.Array:
    """Rows of heads that rotate neighbours (x_2i, x_2i+1), for our pairs (x_i, x_{i + R/2}).

    The first `kept` rows of each head are not rotated.
    """
    rows = weight.reshape(heads, -1, weight.shape[-1])
    rotated = rows[:, kept:]
    rows = jnp.concatenate([rows[:, :kept], rotated[:, 0::2], rotated[:, 1::2]], axis=1)
    return rows.reshape(weight.shape)


# --- softmax attention ----------------------------------------------------------------------------


def attention_config(s: dict[str, Any], **settings) -> dict[str, Any]:
    kept = {n: s[n] for n in ("heads", "kv_heads", "head_dim", "scale", "soft_cap") if n in s}
    rope = dict(theta=s["rope_theta"], fraction=s.get("rope_fraction", 1.0))
    return dict(kind="attention", window=s["window"], rope=rope, **kept, **settings)


def projections(w: Weights, names="qkv") -> dict[str, Any]:
    return dict(out=linear(w["o_proj.weight"]), **{n: linear(w[f"{n}_proj.weight"]) for n in names})


@mapping
def gpt_oss_attention(w, s):
    params = projections(w) | dict(sinks=dict(logits=w["sinks"]))
    return attention_config(s, sinks=True), params


@mapping
def gemma2_attention(w, s):
    return attention_config(s), projections(w)


@mapping
def gemma3_attention(w, s):
    norms = {n: dict(scale=1 + w[f"{n}.weight"]) for n in ("q_norm", "k_norm")}
    return attention_config(s, qk_norm=True), projections(w) | norms


@mapping
def qwen3_next_attention(w, s):
    # q_proj holds queries and gates of a head side by side.
    width = w["q_proj.weight"].shape[-1]
    both = w["q_proj.weight"].reshape(s["heads"], 2, s["head_dim"], width)
    q, gate = (both[:, i].reshape(-1, width) for i in range(2))
    norms = {n: dict(scale=1 + w[f"{n}.weight"]) for n in ("q_norm", "k_norm")}
    params = projections(w, "kv") | norms | dict(q=linear(q), gate=dict(proj=linear(gate)))
    return attention_config(s, qk_norm=True, output_gate=True), params


@mapping
def llama4_chunked_attention(w, s):
    # The norm has no scale, so it may stand before the rotation as well as after it.
    q = halves(w["q_proj.weight"], s["heads"])
    k = halves(w["k_proj.weight"], s["kv_heads"])
    config = attention_config(s, qk_norm="l2", chunk=s["chunk"])
    return config, projections(w, "v") | dict(q=linear(q), k=linear(k))


@mapping
def llama4_nope_attention(w, s):
    # Without RoPE Llama 4 does not norm queries and keys either.
    temperature = dict(scale=s["floor_scale"], strength=s["attn_scale"], steps=True)
    config = attention_config(s | dict(rope_theta=1.0), temperature=temperature) | dict(rope=None)
    return config, projections(w)


# --- recurrences ----------------------------------------------------------------------------------


@mapping
def recurrent_gemma_block(w, s):
    gates = {
        ours: dict(kernel=w[f"rg_lru.{theirs}_weight"], bias=w[f"rg_lru.{theirs}_bias"])
        for ours, theirs in dict(recurrence_gate="recurrent_gate", input_gate="input_gate").items()
    }
    params = dict(
        branch=linear(w["linear_y.weight"]),
        input=linear(w["linear_x.weight"]),
        out=linear(w["linear_out.weight"]),
        conv=dict(kernel=taps(w["conv_1d.weight"]), bias=w["conv_1d.bias"]),
        decay=w["rg_lru.recurrent_param"],
    )
    return dict(kind="rglru", heads=s["heads"], conv_width=s["conv_width"]), params | gates


def mamba2(w: Weights, s: dict[str, Any], prefix: str = "", multipliers=(1,) * 5) -> Mapped:
    """Mamba-2's fused projections; `multipliers` are of z, x, B, C and dt."""
    inner, shared = s["heads"] * s["head_dim"], s["groups"] * s["state"]
    z, x, b, c, dt = (
        part * factor
        for part, factor in zip(
            split(w[f"{prefix}in_proj.weight"], inner, inner, shared, shared, s["heads"]),
            multipliers,
            strict=True,
        )
    )
    kernels = split(w[f"{prefix}conv1d.weight"], inner, 2 * shared)
    biases = split(w[f"{prefix}conv1d.bias"], inner, 2 * shared)
    conv, shared_conv = (
        dict(kernel=taps(kernel), bias=bias) for kernel, bias in zip(kernels, biases, strict=True)
    )
    params = dict(
        gate=linear(z),
        value=linear(x),
        shared=linear(jnp.concatenate([b, c])),
        dt=linear(dt),
        out=linear(w[f"{prefix}out_proj.weight"]),
        conv=conv,
        shared_conv=shared_conv,
        dt_bias=w[f"{prefix}dt_bias"],
        log_a=w[f"{prefix}A_log"],
        skip=w[f"{prefix}D"],
        norm=dict(norm=dict(scale=w[f"{prefix}norm.weight"])),
    )
    config = dict(
        kind="mamba2",
        heads=s["heads"],
        head_dim=s["head_dim"],
        state_dim=s["state"],
        groups=s["groups"],
        conv_width=s["conv_width"],
        norm="after_gate",
    )
    return config, params


@mapping
def mamba2_mixer(w, s):
    return mamba2(w, s)


def mamba1(w: Weights, s: dict[str, Any], norm: str) -> Mapped:
    x, z = split(w["in_proj.weight"], s["inner"], s["inner"])
    dt, shared = split(w["x_proj.weight"], s["rank"], 2 * s["state"])
    params = dict(
        value=linear(x),
        gate=linear(z),
        dt_down=linear(dt),
        shared=linear(shared),
        dt_up=linear(w["dt_proj.weight"]),
        dt_bias=w["dt_proj.bias"],
        out=linear(w["out_proj.weight"]),
        conv=dict(kernel=taps(w["conv1d.weight"]), bias=w["conv1d.bias"]),
        log_a=w["A_log"],
        skip=w["D"],
    )
    config = dict(
        kind="mamba1",
        inner=s["inner"],
        state_dim=s["state"],
        dt_rank=s["rank"],
        conv_width=s["conv_width"],
        norm=norm,
        norm_eps=s.get("mixer_eps"),
    )
    if "in_proj.bias" in w:
        config["bias"] = True
        biases = split(w["in_proj.bias"], s["inner"], s["inner"])
        for name, bias in zip(("value", "gate", "out"), [*biases, w["out_proj.bias"]]):
            params[name]["bias"] = bias
    if norm == "rmsnorm":
        params |= {f"{n}_norm": dict(scale=w[f"{n}_layernorm.weight"]) for n in ("dt", "b", "c")}
    return config, params


@mapping
def mamba_mixer(w, s):
    return mamba1(w, s, "none")


@mapping
def falcon_mamba_mixer(w, s):
    return mamba1(w, s, "unscaled")


@mapping
def jamba_mamba_mixer(w, s):
    return mamba1(w, s, "rmsnorm")


@mapping
def falcon_h1_pair(w, s):
    # Multipliers on what projections read or give become factors on their weights.
    factors = [m * s["ssm_in_multiplier"] for m in s["ssm_multipliers"]]
    ssm, ssm_params = mamba2(w, s | dict(head_dim=s["mamba_head_dim"]), "mamba.", factors)
    inward = s["attention_in_multiplier"]
    scaled = {n: w[f"self_attn.{n}_proj.weight"] * inward for n in "qkv"}
    scaled["k"] = scaled["k"] * s["key_multiplier"]
    attention_params = {n: linear(weight) for n, weight in scaled.items()}
    attention_params["out"] = linear(w["self_attn.o_proj.weight"])
    attention = attention_config(s | dict(heads=s["attention_heads"], window=None))
    config = dict(
        kind="parallel",
        branches=dict(attention=attention, ssm=ssm),
        combine="sum",
        multipliers=dict(attention=s["attention_out_multiplier"], ssm=s["ssm_out_multiplier"]),
    )
    return config, dict(branches=dict(attention=attention_params, ssm=ssm_params))


@mapping
def minimax_lightning_attention(w, s):
    # One projection holds a head's q, k and v, then the next head's.
    width = w["out_proj.weight"].shape[0]
    rows = w["qkv_proj.weight"].reshape(s["heads"], 3, s["head_dim"], width)
    q, k, v = (rows[:, i].reshape(-1, width) for i in range(3))
    kernels = dict(q=q, k=k, v=v, gate=w["output_gate.weight"], out=w["out_proj.weight"])
    params = {n: linear(weight) for n, weight in kernels.items()}
    params["norm"] = dict(norm=dict(scale=w["norm.weight"]))
    config = dict(
        kind="lightning",
        heads=s["heads"],
        head_dim=s["head_dim"],
        decay_scale=1 - s["layer"] / (s["layers"] - 1 + 1e-5) + 1e-5,
    )
    return config, params


@mapping
def xlstm_layer(w, s):
    gates = {
        ours: dict(proj=linear(w[f"{theirs}.weight"]), bias=w[f"{theirs}.bias"])
        for ours, theirs in dict(input_gate="igate_preact", forget_gate="fgate_preact").items()
    }
    params = dict(
        **{n: linear(w[f"{n}.weight"]) for n in "qkv"},
        output_gate=linear(w["ogate_preact.weight"]),
        norm=dict(scale=w["multihead_norm.weight"].reshape(s["heads"], -1)),
        out=linear(w["out_proj.weight"]),
    )
    config = dict(
        kind="mlstm", heads=s["heads"], qk_dim_factor=0.5, gate_soft_cap=s["gate_soft_cap"]
    )
    return config, params | gates


@mapping
def lfm2_short_conv(w, s):
    width = w["out_proj.weight"].shape[0]
    b, c, x = split(w["in_proj.weight"], width, width, width)
    params = dict(
        input_gate=linear(b),
        output_gate=linear(c),
        value=linear(x),
        conv=dict(kernel=taps(w["conv.weight"])),
        out=linear(w["out_proj.weight"]),
    )
    return dict(kind="short_conv", conv_width=s["conv_width"]), params


# --- delta rules ----------------------------------------------------------------------------------


def delta(w: Weights, q, k, v, beta, out) -> dict[str, Any]:
    """What all delta-rule mixers have; the reference convolves q, k and v as one."""
    kernels = split(w["conv1d.weight"], *(part.shape[0] for part in (q, k, v)))
    convs = {f"{n}_conv": dict(kernel=taps(kernel)) for n, kernel in zip("qkv", kernels)}
    kernels = dict(q=q, k=k, v=v, beta=beta, out=out)
    return {n: linear(weight) for n, weight in kernels.items()} | convs


def head_decay(w: Weights, a: jax.Array) -> dict[str, Any]:
    return dict(decay=dict(proj=linear(a), a_log=w["A_log"], dt_bias=w["dt_bias"]))


def gated_output(gate: Any, norm: jax.Array) -> dict[str, Any]:
    return dict(output=dict(gate=gate, norm=dict(norm=dict(scale=norm))))


@mapping
def qwen3_next_gated_delta_net(w, s):
    # One projection holds q, k, the values and their gates of a key head, then the next head's.
    groups, shared = s["key_heads"], s["value_heads"] // s["key_heads"]
    width = w["out_proj.weight"].shape[0]
    values = shared * s["value_dim"]

    def by_head(weight, *sizes):
        rows = weight.reshape(groups, sum(sizes), width)
        parts = jnp.split(rows, np.cumsum(sizes)[:-1], axis=1)
        return [part.reshape(-1, width) for part in parts]

    q, k, v, z = by_head(w["in_proj_qkvz.weight"], s["key_dim"], s["key_dim"], values, values)
    b, a = by_head(w["in_proj_ba.weight"], shared, shared)
    params = delta(w, q, k, v, b, w["out_proj.weight"]) | head_decay(w, a)
    config = dict(
        kind="gdn",
        heads=groups,
        value_heads=s["value_heads"],
        head_dim=s["key_dim"],
        value_dim=s["value_dim"],
        conv_width=s["conv_width"],
    )
    return config, params | gated_output(linear(z), w["norm.weight"])


@mapping
def olmo_hybrid_gated_delta_net(w, s):
    q, k, v, a, b, g = (w[f"{n}_proj.weight"] for n in "qkvabg")
    params = delta(w, q, k, v, b, w["o_proj.weight"]) | head_decay(w, a)
    config = dict(
        kind="gdn",
        heads=s["heads"],
        head_dim=s["key_dim"],
        value_dim=s["value_dim"],
        conv_width=s["conv_width"],
        negative_eigenvalues=True,
    )
    return config, params | gated_output(linear(g), w["o_norm.weight"])


def low_rank(down: jax.Array, up: jax.Array) -> dict[str, Any]:
    return dict(down=linear(down), up=linear(up))


@mapping
def kimi_linear_delta_attention(w, s):
    q, k, v, b = (w[f"{n}_proj.weight"] for n in "qkvb")
    gate = low_rank(w["g_a_proj.weight"], w["g_b_proj.weight"])
    decay = dict(
        proj=low_rank(w["forget_gate.f_a_proj.weight"], w["forget_gate.f_b_proj.weight"]),
        a_log=w["forget_gate.A_log"].reshape(-1),
        dt_bias=w["forget_gate.dt_bias"].reshape(s["heads"], -1),
    )
    params = delta(w, q, k, v, b, w["o_proj.weight"]) | dict(decay=decay)
    config = dict(
        kind="kda",
        heads=s["heads"],
        head_dim=s["head_dim"],
        conv_width=s["conv_width"],
        lower_bound=s.get("lower_bound"),
    )
    return config, params | gated_output(gate, w["o_norm.weight"])


@mapping
def glm5_next_delta_attention(w, s):
    return kimi_linear_delta_attention(w, s)


# --- latent attention -----------------------------------------------------------------------------


def latent(w: Weights, s: dict[str, Any], rope: dict | None) -> Mapped:
    """Multi-head latent attention; `rope` rotates neighbours, as DeepSeek lays them out."""
    name = "q_proj" if s["q_rank"] is None else "q_b_proj"
    q, kv_down = w[f"{name}.weight"], w["kv_a_proj_with_mqa.weight"]
    if rope is not None:
        q = halves(q, s["heads"], kept=s["nope_dim"])
        kv_down = halves(kv_down, 1, kept=s["kv_rank"])
    if s["q_rank"] is None:
        queries = linear(q)
    else:
        norm = dict(scale=w["q_a_layernorm.weight"])
        queries = low_rank(w["q_a_proj.weight"], q) | dict(norm=norm)
    params = dict(
        q=queries,
        kv_down=linear(kv_down),
        kv_norm=dict(scale=w["kv_a_layernorm.weight"]),
        kv_up=linear(w["kv_b_proj.weight"]),
        out=linear(w["o_proj.weight"]),
    )
    config = dict(
        kind="mla",
        heads=s["heads"],
        kv_rank=s["kv_rank"],
        q_rank=s["q_rank"],
        qk_nope=s["nope_dim"],
        qk_rope=s["rope_dim"],
        value_dim=s["value_dim"],
        rope=rope,
    )
    return config, params


@mapping
def deepseek_v3_attention(w, s):
    return latent(w, s, dict(theta=s["rope_theta"]))


@mapping
def kimi_linear_attention(w, s):
    return latent(w, s, None)
