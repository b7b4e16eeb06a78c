"""Every op, in both its forms, against what other libraries compute on the same numbers.

Each function takes a fixture's inputs and weights in the other library's layout and gives its
outputs. transformers and flash-linear-attention fold scale = K ** -0.5 into the delta rules and
linear attentions; states there are (B, H, K, V) but for Mamba-2's, (B, H, V, K).
"""

import comparison
import jax
import jax.numpy as jnp
import pytest

from kernels_pallas.attention import attention
from kernels_pallas.block_sparse import block_sparse_attention
from kernels_pallas.causal_conv import causal_conv
from kernels_pallas.delta_rule import DeltaRuleState, delta_rule
from kernels_pallas.delta_rule.product import delta_product
from kernels_pallas.gated_linear import GatedLinearState, gated_linear
from kernels_pallas.gated_slots import SlotState, gated_slots
from kernels_pallas.linear_recurrence import RecurrenceState, linear_recurrence
from kernels_pallas.selective_scan import selective_scan

OPS = {}


def op(*names):
    """Registers a function for the fixtures it serves."""

    def register(function):
        OPS.update(dict.fromkeys(names, function))
        return function

    return register


def carried(x) -> jax.Array:
    """Segment ids (B,) of a state that belongs to document 1, which the input goes on with."""
    return jnp.ones(x.shape[0], jnp.int32)


@op("op_attention_sinks_window", "op_attention_soft_cap", "op_attention_soft_cap_window")
def attention_and_lse(x, weights, settings, impl):
    out, lse = attention(
        x["q"], x["k"], x["v"], sinks_H=weights.get("sinks"), impl=impl, **settings
    )
    return dict(out=out, lse=lse)  # lse holds the sink, as the reference's denominator does


@op("op_attention_naive_sinks")
def attention_only(x, weights, settings, impl):
    return dict(out=attention_and_lse(x, weights, settings, impl)["out"])


@op("op_forgetting_attention", "op_forgetting_attention_window")
def forgetting_attention(x, weights, settings, impl):
    gates = dict(log_forget_BTH=x["log_forget"])
    return dict(out=attention(x["q"], x["k"], x["v"], **gates, impl=impl, **settings)[0])


@op("op_block_sparse")
def block_sparse(x, weights, settings, impl):
    return dict(out=block_sparse_attention(x["q"], x["k"], x["v"], impl=impl, **settings)[0])


@op("op_rnn_scan")
def rnn_scan(x, weights, settings, impl):
    ids = 1 + jnp.cumsum(x["starts"], axis=1, dtype=jnp.int32)
    # Row 0 goes on with the state's document, row 1 starts one at once.
    h, final = linear_recurrence(
        x["a"],
        x["b"],
        segment_ids=ids,
        return_state=True,
        impl=impl,
        initial_state=RecurrenceState(x["state"], carried(ids)),
    )
    return dict(h=h, final=final.h_BD)


@op("op_hgrn")
def hgrn(x, weights, settings, impl):
    h, final = linear_recurrence(
        jnp.exp(x["g"]),
        x["x"],
        return_state=True,
        impl=impl,
        initial_state=RecurrenceState(x["state"], carried(x["state"])),
    )
    return dict(h=h, final=final.h_BD)


@op("op_causal_conv")
def conv(x, weights, settings, impl):
    return dict(y=causal_conv(x["x"], weights["weight"].T[::-1], weights["bias"], impl=impl))


def linear(q, k, v, log_decay, state, impl, **options):
    o, final = gated_linear(
        q,
        k,
        v,
        log_decay,
        return_state=True,
        impl=impl,
        initial_state=GatedLinearState(state, carried(state)),
        **options,
    )
    return o, final.s_BHKV


@op("op_gla", "op_simple_gla", "op_linear_attention")
def gated_linear_attention(x, weights, settings, impl):
    heads, key_size = x["k"].shape[2:]
    log_decay = x.get("g", jnp.zeros(heads))  # none is a gate of 1
    o, final = linear(x["q"], x["k"], x["v"], log_decay, x["state"], impl, scale=key_size**-0.5)
    return dict(o=o, final=final)


@op("op_retention")
def retention(x, weights, settings, impl):
    heads, key_size = x["k"].shape[2:]
    log_decay = jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(heads, dtype=jnp.float32))))
    o = gated_linear(x["q"], x["k"], x["v"], log_decay, scale=key_size**-0.5, impl=impl)
    return dict(o=o)


@op("op_mamba2_chunk_scan")
def mamba2(x, weights, settings, impl):
    dt = jax.nn.softplus(x["dt"] + weights["dt_bias"][None, None])
    log_decay = -jnp.exp(weights["A_log"])[None, None] * dt
    y, final = linear(
        x["C"], x["B"], x["x"] * dt[..., None], log_decay, x["state"].swapaxes(2, 3), impl
    )
    y = y + weights["D"][None, None, :, None] * x["x"]
    return dict(y=y, final=final.swapaxes(2, 3))


@op("op_selective_scan")
def selective(x, weights, settings, impl):
    dt = jax.nn.softplus(x["dt"] + weights["dt_bias"][None, None])
    y, final = selective_scan(
        x["x"], dt, -jnp.exp(weights["A_log"]), x["B"], x["C"], return_state=True, impl=impl
    )
    return dict(y=y + weights["D"][None, None] * x["x"], final=final.h_BDN)


@op(
    "op_delta_rule",
    "op_gated_delta_rule",
    "op_gated_delta_rule_naive",
    "op_kimi_delta_attention",
    "op_kimi_delta_attention_naive",
)
def delta(x, weights, settings, impl):
    o, final = delta_rule(
        x["q"],
        x["k"],
        x["v"],
        x["beta"],
        x.get("g"),
        return_state=True,
        impl=impl,
        initial_state=DeltaRuleState(x["state"], carried(x["state"])),
    )
    return dict(o=o, final=final.s_BHKV)


@op("op_gated_delta_rule_2")
def delta_2(x, weights, settings, impl):
    o, final = delta_rule(
        x["q"],
        x["k"],
        x["w"] * x["v"],
        log_decay=x["g"],
        erase_BTGK=x["b"] * x["k"],
        return_state=True,
        impl=impl,
        initial_state=DeltaRuleState(x["state"], carried(x["state"])),
    )
    return dict(o=o, final=final.s_BHKV)


@op("op_gated_delta_product")
def product(x, weights, settings, impl):
    batch, time = x["q"].shape[:2]
    k, v, beta = (x[n].reshape(batch, time, -1, *x[n].shape[2:]) for n in ("k", "v", "beta"))
    o, final = delta_product(
        delta_rule,
        x["q"],
        k,
        v,
        beta,
        x["g"],
        segment_ids=jnp.ones((batch, time), jnp.int32),
        return_state=True,
        impl=impl,
        initial_state=DeltaRuleState(x["state"], carried(x["state"])),
    )
    return dict(o=o, final=final.s_BHKV)


@op("op_gated_slots")
def slots(x, weights, settings, impl):
    state = SlotState(
        x["k_state"].swapaxes(2, 3), x["v_state"], carried(x["q"]), jnp.ones(len(x["q"]), bool)
    )
    o, _, final = gated_slots(
        x["q"],
        x["k"],
        x["v"],
        x["g"],
        x["s"],
        scale=settings["scale"],
        initial_state=state,
        return_state=True,
        impl=impl,
    )
    return dict(o=o, final_k=final.k_slots_BGMK.swapaxes(2, 3), final_v=final.v_slots_BGMV)


# By law 1 both forms agree, so that the token-by-token one is held to the oracles now and then.
@pytest.mark.parametrize("impl", ["chunked", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OPS)
def test_op_equals_oracle(name, impl, fixtures):
    fixture = comparison.Fixture.load(fixtures, name)
    fixture.compare(lambda inputs, weights: OPS[name](inputs, weights, fixture.settings, impl))


def test_every_fixture_of_an_op_is_used(fixtures):
    comparison.check_complete(fixtures, OPS, "op_")
