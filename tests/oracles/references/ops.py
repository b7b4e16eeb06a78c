"""Operations: what transformers and flash-linear-attention compute with one call."""

import importlib
import types

import naive
import torch
import transformers
from recording import Case, Draw, case
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

BATCH, TIME, HEADS, KEY, VALUE = 2, 70, 2, 6, 5  # 70: past the 64 tokens of the usual chunk


def of_transformers(model: str, name: str) -> tuple:
    """(the class or function, how it is cited)."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    return getattr(module, name), f"transformers {transformers.__version__} {model} {name}"


def of_fla(op: str, name: str) -> tuple:
    """(the naive function, how it is cited)."""
    return getattr(naive.load(op), name), f"{naive.VERSION} fla/ops/{op}/naive.py {name}"


def mask(time: int, window: int | None) -> torch.Tensor:
    """(1, 1, T, T) to add to logits: 0 where transformers' mask functions allow, else -inf."""
    allowed = (
        causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    )
    t = torch.arange(time)
    return torch.where(allowed(0, 0, t[:, None], t[None, :]), 0.0, -torch.inf)[None, None]


def qkv(draw: Draw, heads: int = HEADS, value_heads: int | None = None, key=KEY) -> dict:
    """q, k (B, T, H, K) and v (B, T, HV, V)."""
    return dict(
        q=draw.normal(BATCH, TIME, heads, key),
        k=draw.normal(BATCH, TIME, heads, key),
        v=draw.normal(BATCH, TIME, value_heads or heads, VALUE),
    )


def state(draw: Draw, heads: int, key: int = KEY) -> torch.Tensor:
    """A state of the tokens before (B, H, K, V)."""
    return draw.normal(BATCH, heads, key, VALUE)


# --- attention --------------------------------------------------------------------------------


def _attention(draw: Draw, model: str, window: int | None, heads: int, kv_heads: int, **options):
    function, source = of_transformers(model, "eager_attention_forward")
    time = 40
    weights = dict(sinks=draw.normal(heads)) if model == "gpt_oss" else {}
    scale = 0.4

    def run(inputs, weights):
        stub = types.SimpleNamespace(
            num_key_value_groups=heads // kv_heads, training=False, sinks=weights.get("sinks")
        )
        q, k, v = (inputs[n].transpose(1, 2) for n in "qkv")
        out, probabilities = function(
            stub, q, k, v, mask(time, window), scaling=scale, dropout=0.0, **options
        )
        # probability = exp(logit - lse), and a token always sees itself
        own = (q * k.repeat_interleave(heads // kv_heads, 1)).sum(-1) * scale
        if cap := options.get("softcap"):
            own = torch.tanh(own / cap) * cap
        lse = own - torch.log(probabilities.diagonal(dim1=-2, dim2=-1))
        return dict(out=out, lse=lse.transpose(1, 2))

    inputs = dict(
        q=draw.normal(BATCH, time, heads, KEY),
        k=draw.normal(BATCH, time, kv_heads, KEY),
        v=draw.normal(BATCH, time, kv_heads, VALUE),
    )
    settings = dict(window=window, scale=scale, soft_cap=options.get("softcap"))
    return Case(source, run, inputs, weights, settings)


@case
def op_attention_sinks_window(draw: Draw) -> Case:
    return _attention(draw, "gpt_oss", window=7, heads=6, kv_heads=2)


@case
def op_attention_soft_cap(draw: Draw) -> Case:
    return _attention(draw, "gemma2", window=None, heads=4, kv_heads=4, softcap=1.5)


@case
def op_attention_soft_cap_window(draw: Draw) -> Case:
    return _attention(draw, "gemma2", window=9, heads=4, kv_heads=1, softcap=2.0)


@case
def op_attention_naive_sinks(draw: Draw) -> Case:
    function, source = of_fla("attn", "naive_parallel_attn")
    window = 11

    def run(inputs, weights):
        out, _ = function(
            *(inputs[n] for n in "qkv"), window_size=window, sink_bias=weights["sinks"]
        )
        return dict(out=out)

    time, heads, kv_heads = 40, 4, 2
    inputs = dict(
        q=draw.normal(BATCH, time, heads, KEY),
        k=draw.normal(BATCH, time, kv_heads, KEY),
        v=draw.normal(BATCH, time, kv_heads, VALUE),
    )
    settings = dict(window=window, scale=KEY**-0.5, soft_cap=None)
    return Case(source, run, inputs, dict(sinks=draw.normal(heads)), settings)


def _forgetting(draw: Draw, window: int | None) -> Case:
    function, source = of_fla("forgetting_attn", "naive_forgetting_attn")
    time, heads, kv_heads = 40, 4, 2

    def run(inputs, weights):
        tensors = (inputs[n] for n in ("q", "k", "v", "log_forget"))
        return dict(out=function(*tensors, window_size=window))

    inputs = dict(
        q=draw.normal(BATCH, time, heads, KEY),
        k=draw.normal(BATCH, time, kv_heads, KEY),
        v=draw.normal(BATCH, time, kv_heads, VALUE),
        log_forget=torch.nn.functional.logsigmoid(draw.normal(BATCH, time, heads)),
    )
    return Case(source, run, inputs, {}, dict(window=window, scale=KEY**-0.5))


@case
def op_forgetting_attention(draw: Draw) -> Case:
    return _forgetting(draw, None)


@case
def op_forgetting_attention_window(draw: Draw) -> Case:
    return _forgetting(draw, 11)


@case
def op_block_sparse(draw: Draw) -> Case:
    """MoBA: the sparse attention is fla's, on keys that its paper's rule chooses head by head."""
    function, source = of_fla("dsa", "naive_dsa")
    time, heads, kv_heads, block, top_k = 44, 4, 2, 8, 3

    def chosen(q, k):
        """(B, T, N) bool, the blocks that one head's queries see; arXiv 2502.13189 eq. 4-6."""
        own = torch.arange(time) // block
        blocks = int(own[-1]) + 1
        means = torch.stack([k[:, own == n].mean(1) for n in range(blocks)], 1)
        past = own[:, None] > torch.arange(blocks)
        liking = (q @ means.transpose(1, 2)).masked_fill(~past, -torch.inf)
        best = torch.topk(liking, top_k - 1).indices
        seen = torch.zeros(BATCH, time, blocks, dtype=torch.bool).scatter(2, best, True)
        return (seen & past) | (own[:, None] == torch.arange(blocks))

    def run(inputs, weights):
        outs = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            q, k, v = inputs["q"][:, :, head], inputs["k"][:, :, group], inputs["v"][:, :, group]
            token = torch.arange(time)
            seen = chosen(q.detach(), k.detach())[..., token // block]
            indices = torch.where(seen, token, -1)
            q, k, v = (x[:, :, None] for x in (q, k, v))
            outs.append(function(q, k, v, None, None, indices=indices))
        return dict(out=torch.cat(outs, dim=2))

    inputs = dict(
        q=draw.normal(BATCH, time, heads, KEY),
        k=draw.normal(BATCH, time, kv_heads, KEY),
        v=draw.normal(BATCH, time, kv_heads, VALUE),
    )
    return Case(source, run, inputs, settings=dict(block=block, top_k=top_k))


# --- diagonal recurrences and the short convolution ---------------------------------------------


@case
def op_rnn_scan(draw: Draw) -> Case:
    block, source = of_transformers("recurrent_gemma", "RecurrentGemmaRglru")
    channels = 12
    starts = torch.zeros(BATCH, TIME, dtype=torch.int32)
    for row, times in enumerate([(5, 6, 40), (0, 64)]):  # row 0 goes on from the state
        starts[row, list(times)] = 1

    def run(inputs, weights):
        reset = inputs["starts"][:, :, None] == 1
        h, final = block._rnn_scan(None, inputs["b"], inputs["a"], reset, inputs["state"])
        return dict(h=h, final=final)

    inputs = dict(
        a=torch.exp(draw.log_decay(BATCH, TIME, channels)),
        b=draw.normal(BATCH, TIME, channels),
        starts=starts,
        state=draw.normal(BATCH, channels),
    )
    return Case(f"{source}._rnn_scan", run, inputs)


@case
def op_hgrn(draw: Draw) -> Case:
    function, source = of_fla("hgrn", "naive_recurrent_hgrn")

    def run(inputs, weights):
        h, final = function(inputs["x"], inputs["g"], inputs["state"], output_final_state=True)
        return dict(h=h, final=final)

    shape = BATCH, TIME, 12
    inputs = dict(x=draw.normal(*shape), g=draw.log_decay(*shape), state=draw.normal(BATCH, 12))
    return Case(source, run, inputs)


@case
def op_causal_conv(draw: Draw) -> Case:
    function, source = of_transformers("mamba2", "causal_conv1d_fn")

    def run(inputs, weights):
        y = function(inputs["x"].transpose(1, 2), weights["weight"], weights["bias"])
        return dict(y=y.transpose(1, 2))

    weights = dict(weight=draw.normal(12, 4), bias=draw.normal(12))
    return Case(source, run, dict(x=draw.normal(BATCH, TIME, 12)), weights)


# --- gated linear attention ---------------------------------------------------------------------


@case
def op_gla(draw: Draw) -> Case:
    function, source = of_fla("gla", "naive_recurrent_gla")

    def run(inputs, weights):
        o, final = function(
            *(inputs[n] for n in ("q", "k", "v", "g")), inputs["state"], output_final_state=True
        )
        return dict(o=o, final=final)

    g = draw.log_decay(BATCH, TIME, HEADS, KEY)
    return Case(source, run, dict(**qkv(draw), g=g, state=state(draw, HEADS)))


@case
def op_simple_gla(draw: Draw) -> Case:
    function, source = of_fla("simple_gla", "naive_recurrent_simple_gla")

    def run(inputs, weights):
        o, final = function(
            *(inputs[n] for n in ("q", "k", "v", "g")), initial_state=inputs["state"]
        )
        return dict(o=o, final=final)

    g = draw.log_decay(BATCH, TIME, HEADS)
    return Case(source, run, dict(**qkv(draw), g=g, state=state(draw, HEADS)))


@case
def op_linear_attention(draw: Draw) -> Case:
    function, source = of_fla("linear_attn", "naive_recurrent_linear_attn")

    def run(inputs, weights):
        o, final = function(
            *(inputs[n] for n in "qkv"), initial_state=inputs["state"], output_final_state=True
        )
        return dict(o=o, final=final)

    return Case(source, run, dict(**qkv(draw), state=state(draw, HEADS)))


@case
def op_retention(draw: Draw) -> Case:
    function, source = of_fla("retention", "naive_retention")

    def run(inputs, weights):
        o = function(*(inputs[n].transpose(1, 2) for n in "qkv"))
        return dict(o=o.transpose(1, 2))

    return Case(source, run, qkv(draw, heads=3))


@case
def op_mamba2_chunk_scan(draw: Draw) -> Case:
    function, source = of_transformers("mamba2", "mamba2_chunk_scan")
    heads, groups = 6, 2

    def run(inputs, weights):
        y, final = function(
            inputs["x"],
            inputs["dt"],
            -torch.exp(weights["A_log"]),
            inputs["B"],
            inputs["C"],
            chunk_size=16,
            D=weights["D"],
            dt_bias=weights["dt_bias"],
            dt_softplus=True,
            initial_states=inputs["state"],
            return_final_states=True,
        )
        return dict(y=y, final=final)

    inputs = dict(
        x=draw.normal(BATCH, TIME, heads, VALUE),
        dt=draw.normal(BATCH, TIME, heads),
        B=draw.normal(BATCH, TIME, groups, KEY),
        C=draw.normal(BATCH, TIME, groups, KEY),
        state=draw.normal(BATCH, heads, VALUE, KEY),
    )
    weights = dict(
        # Its gradient sums decay times gradient over all tokens; the stronger the decays, the more
        # of that cancels, and the less float32 says of it.
        A_log=torch.log(draw.uniform(heads, low=0.3, high=1.5)),
        D=draw.normal(heads),
        dt_bias=draw.normal(heads, mean=-1.5),
    )
    return Case(source, run, inputs, weights)


@case
def op_selective_scan(draw: Draw) -> Case:
    """Mamba-1's scan; the function takes no initial state."""
    function, source = of_transformers("mamba", "mamba_selective_scan")
    channels, size = 6, 5

    def run(inputs, weights):
        x, dt, b, c = (inputs[n].transpose(1, 2) for n in ("x", "dt", "B", "C"))
        y, final = function(
            x,
            dt,
            -torch.exp(weights["A_log"]),
            b,
            c,
            D=weights["D"],
            delta_bias=weights["dt_bias"],
            delta_softplus=True,
            return_last_state=True,
        )
        return dict(y=y.transpose(1, 2), final=final)

    inputs = dict(
        x=draw.normal(BATCH, TIME, channels),
        dt=draw.normal(BATCH, TIME, channels),
        B=draw.normal(BATCH, TIME, size),
        C=draw.normal(BATCH, TIME, size),
    )
    weights = dict(
        A_log=torch.log(draw.uniform(channels, size, low=0.3, high=1.5)),
        D=draw.normal(channels),
        dt_bias=draw.normal(channels, mean=-1.5),
    )
    return Case(source, run, inputs, weights)


# --- delta rules --------------------------------------------------------------------------------


@case
def op_delta_rule(draw: Draw) -> Case:
    function, source = of_fla("delta_rule", "delta_rule_recurrence")

    def run(inputs, weights):
        q, k, v, beta = (inputs[n].transpose(1, 2) for n in ("q", "k", "v", "beta"))
        o, final = function(q, k, v, beta, initial_state=inputs["state"])
        return dict(o=o.transpose(1, 2), final=final)

    inputs = qkv(draw) | dict(
        k=draw.unit(BATCH, TIME, HEADS, KEY),
        beta=draw.uniform(BATCH, TIME, HEADS, high=2.0),
        state=state(draw, HEADS),
    )
    return Case(source, run, inputs)


def _delta(draw: Draw, heads: int, value_heads: int, vector: bool, beta: float) -> dict:
    per_head = (BATCH, TIME, value_heads)
    return qkv(draw, heads, value_heads) | dict(
        k=draw.unit(BATCH, TIME, heads, KEY),
        g=draw.log_decay(*per_head, KEY) if vector else draw.log_decay(*per_head),
        beta=draw.uniform(*per_head, high=beta),
        state=state(draw, value_heads),
    )


def _run_delta(function):
    def run(inputs, weights):
        names = dict(initial_state="state", **{n: n for n in ("g", "beta")})
        # transformers and fla call q, k and v differently, and order g and beta differently
        o, final = function(
            *(inputs[n] for n in "qkv"),
            output_final_state=True,
            **{theirs: inputs[n] for theirs, n in names.items()},
        )
        return dict(o=o, final=final)

    return run


@case
def op_gated_delta_rule(draw: Draw) -> Case:
    function, source = of_transformers("qwen3_next", "torch_chunk_gated_delta_rule")
    return Case(source, _run_delta(function), _delta(draw, 2, 4, vector=False, beta=1.0))


@case
def op_gated_delta_rule_naive(draw: Draw) -> Case:
    function, source = of_fla("gated_delta_rule", "naive_recurrent_gated_delta_rule")
    return Case(source, _run_delta(function), _delta(draw, 2, 2, vector=False, beta=2.0))


@case
def op_kimi_delta_attention(draw: Draw) -> Case:
    function, source = of_transformers("kimi_linear", "chunk_kimi_delta_attention")
    return Case(source, _run_delta(function), _delta(draw, 2, 2, vector=True, beta=1.0))


@case
def op_kimi_delta_attention_naive(draw: Draw) -> Case:
    function, source = of_fla("kda", "naive_recurrent_kda")
    return Case(source, _run_delta(function), _delta(draw, 1, 3, vector=True, beta=2.0))


# --- slots --------------------------------------------------------------------------------------


@case
def op_gated_slots(draw: Draw) -> Case:
    function, source = of_fla("gsa", "naive_recurrent_gsa")
    heads, kv_heads, slots = 4, 2, 5
    scale = 0.7

    def run(inputs, weights):
        k_state, v_state = inputs["k_state"], inputs["v_state"]
        o, final = function(
            *(inputs[n] for n in "qkvsg"),
            scale=scale,
            initial_state=(k_state, v_state),
            output_final_state=True,
        )
        return dict(o=o, final_k=final[0], final_v=final[1])

    inputs = dict(
        q=draw.normal(BATCH, TIME, heads, KEY),
        k=draw.normal(BATCH, TIME, kv_heads, KEY),
        v=draw.normal(BATCH, TIME, kv_heads, VALUE),
        s=draw.uniform(BATCH, TIME, kv_heads, slots),
        g=draw.log_decay(BATCH, TIME, kv_heads, slots),
        k_state=draw.normal(BATCH, kv_heads, KEY, slots),
        v_state=draw.normal(BATCH, kv_heads, slots, VALUE),
    )
    return Case(source, run, inputs, settings=dict(scale=scale))


@case
def op_gated_delta_rule_2(draw: Draw) -> Case:
    """Gated DeltaNet-2, with gates for erasing and for writing."""
    function, source = of_fla("gdn2", "naive_recurrent_gdn2")

    def run(inputs, weights):
        arrays = (inputs[n] for n in ("q", "k", "v", "g", "b", "w"))
        o, final = function(*arrays, initial_state=inputs["state"], output_final_state=True)
        return dict(o=o, final=final)

    inputs = _delta(draw, 2, 2, vector=True, beta=1.0)
    del inputs["beta"]
    gates = dict(b=draw.uniform(*inputs["k"].shape), w=draw.uniform(*inputs["v"].shape))
    return Case(source, run, inputs | gates)


@case
def op_gated_delta_product(draw: Draw) -> Case:
    """Three Householder steps a token; one decay before the first of them."""
    function, source = of_fla("gated_delta_product", "naive_recurrent_gated_delta_product")
    steps, time = 3, 40

    def run(inputs, weights):
        names = ("q", "k", "v", "g", "beta")
        o, final = function(
            *(inputs[n] for n in names),
            scale=KEY**-0.5,
            initial_state=inputs["state"],
            output_final_state=True,
            num_householder=steps,
        )
        return dict(o=o, final=final)

    inputs = dict(
        q=draw.normal(BATCH, time, HEADS, KEY),
        k=draw.unit(BATCH, time * steps, HEADS, KEY),
        v=draw.normal(BATCH, time * steps, HEADS, VALUE),
        g=draw.log_decay(BATCH, time, HEADS),
        beta=draw.uniform(BATCH, time * steps, HEADS, high=2.0),
        state=state(draw, HEADS),
    )
    return Case(source, run, inputs, settings=dict(steps=steps))
