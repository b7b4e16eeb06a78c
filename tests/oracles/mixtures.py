"""How each reference block's settings and weights become those of our mixture of experts."""

from typing import Any

import jax
import jax.numpy as jnp
from mappings import Mapped, Weights, linear

PER_TOKEN, SIZE = "num_experts_per_tok", "moe_intermediate_size"
DEEPSEEK = dict(scores="sigmoid", normalize=True, normalize_eps=1e-20)


def experts(w: Weights, *, rows_first: bool, interleaved: bool = False) -> dict[str, jax.Array]:
    """Our experts' parameters.

    Args:
      rows_first: matrices are (out, in), and not (in, out).
      interleaved: columns of gate and up alternate (gpt-oss), and do not follow each other.
    """
    found = {}
    into = "gate_up_proj" if "experts.gate_up_proj" in w else "up_proj"
    for name in (into, "down_proj"):
        kernel = w[f"experts.{name}"]
        found[name] = kernel.swapaxes(1, 2) if rows_first else kernel
        if f"experts.{name}_bias" in w:
            found[f"{name}_bias"] = w[f"experts.{name}_bias"]
    ours = {}
    for name, value in found.items():
        part = name.replace("_proj", "")
        if part.startswith("gate_up"):
            pair = (value[..., 0::2], value[..., 1::2]) if interleaved else jnp.split(value, 2, -1)
            ours |= dict(zip((part.replace("gate_up", n) for n in ("gate", "up")), pair))
        else:
            ours[part] = value
    return ours


def shared(w: Weights, prefix: str) -> dict[str, Any]:
    """Our shared expert's parameters."""
    names = [n for n in ("gate", "up", "down") if f"{prefix}.{n}_proj.weight" in w]
    return {n: linear(w[f"{prefix}.{n}_proj.weight"]) for n in names}


def mixture(
    w: Weights,
    s: dict[str, Any],
    *,
    count: str,
    hidden: str = SIZE,
    gate: str = "gate",
    rows_first: bool = True,
    shared_as: str | None = None,
    router: dict[str, Any] | None = None,
    interleaved: bool = False,
    **settings: Any,
) -> Mapped:
    """Settings and parameters.

    Args:
      count, hidden: the reference's settings for the number of experts and their hidden layer's size.
      gate: where its router's weights are.
      shared_as: where its shared expert's weights are.
    """
    routed = {"kernel": w[f"{gate}.weight"].T}
    router = dict(router or {}, choice_bias=s["choice_bias"] is not None)
    if f"{gate}.bias" in w:
        routed["bias"] = w[f"{gate}.bias"]
        router["bias"] = True
    if router["choice_bias"]:
        routed["choice_bias"] = jnp.asarray(s["choice_bias"], jnp.float32)
    params = dict(experts=experts(w, rows_first=rows_first, interleaved=interleaved), router=routed)
    if shared_as:
        params["shared"] = shared(w, shared_as)
        settings["shared_hidden"] = params["shared"]["up"]["kernel"].shape[1]
    if settings.get("shared_gate"):
        params["shared_gate"] = linear(w[f"{shared_as}_gate.weight"])
    if settings.get("latent"):
        params["into_latent"] = linear(w["fc1_latent_proj.weight"])
        params["from_latent"] = linear(w["fc2_latent_proj.weight"])
    sizes = dict(experts=s[count], top_k=s[PER_TOKEN], hidden=s[hidden])
    return dict(kind="moe", router=router, **sizes, **settings), params


LOCAL = dict(count="num_local_experts", hidden="intermediate_size")


def mixtral(w, s):
    return mixture(w, s, **LOCAL, router=dict(normalize=True))


def qwen(w, s):
    return mixture(w, s, count="num_experts", router=dict(normalize=s["norm_topk_prob"]))


def qwen_shared(w, s):
    router = dict(normalize=s["norm_topk_prob"])
    more = dict(shared_as="shared_expert", shared_gate=True)
    return mixture(w, s, count="num_experts", router=router, **more)


def gpt_oss(w, s):
    return mixture(
        w,
        s,
        **LOCAL,
        gate="router",
        rows_first=False,
        interleaved=True,
        router=dict(scores="softmax_chosen"),
        bias=True,
        clamp=s["swiglu_limit"],
        gate_slope=1.702,
        up_offset=1.0,
    )


def deepseek_v2(w, s):
    groups = dict(groups=s["n_group"], top_groups=s["topk_group"], group_score="max")
    router = dict(scale=s["routed_scaling_factor"], **groups)
    return mixture(w, s, count="n_routed_experts", router=router, shared_as="shared_experts")


def deepseek_v3(w, s):
    groups = dict(groups=s["n_group"], top_groups=s["topk_group"])
    router = dict(scale=s["routed_scaling_factor"], **DEEPSEEK, **groups)
    return mixture(w, s, count="n_routed_experts", router=router, shared_as="shared_experts")


def llama4(w, s):
    return mixture(
        w,
        s,
        **LOCAL,
        gate="router",
        rows_first=False,
        router=dict(scores="sigmoid"),
        weigh="input",
        shared_as="shared_expert",
    )


def nemotron_h(w, s):
    router = dict(scale=s["routed_scaling_factor"], **DEEPSEEK)
    return mixture(
        w,
        s,
        count="n_routed_experts",
        router=router,
        shared_as="shared_experts",
        gated=False,
        activation="relu2",
        latent=s.get("moe_latent_size"),
    )


def granite(w, s):
    return mixture(w, s, **LOCAL, gate="router", router=dict(scores="softmax_chosen"))


def jamba(w, s):
    return mixture(w, s, count="num_experts", hidden="intermediate_size", gate="router")


def lfm2(w, s):
    router = dict(scores="sigmoid", normalize=True, normalize_eps=1e-6)
    return mixture(w, s, count="num_experts", router=router)


def afmoe(w, s):
    router = dict(scale=s["route_scale"], **DEEPSEEK)
    more = dict(gate="router.gate", shared_as="shared_experts")
    return mixture(w, s, count="num_experts", router=router, **more)


def minimax_m2(w, s):
    return mixture(w, s, **LOCAL, router=dict(scores="sigmoid", normalize=True))


MIXTURES = {
    "moe_mixtral": mixtral,
    "moe_qwen2": qwen_shared,
    "moe_qwen3": qwen,
    "moe_qwen3_next": qwen_shared,
    "moe_gpt_oss": gpt_oss,
    "moe_deepseek_v2": deepseek_v2,
    "moe_deepseek_v3": deepseek_v3,
    "moe_llama4": llama4,
    "moe_nemotron_h": nemotron_h,
    "moe_nemotron_h_latent": nemotron_h,
    "moe_granite": granite,
    "moe_jamba": jamba,
    "moe_lfm2": lfm2,
    "moe_afmoe": afmoe,
    "moe_minimax_m2": minimax_m2,
}
