"""Token mixers: single layers of transformers' models, tiny and with random weights."""

import importlib
from collections.abc import Callable, Mapping

import torch
import transformers
from ops import mask
from recording import Case, Draw, Tensors, case
from torch import nn

BATCH, WIDTH = 2, 24
LONG, SHORT = 70, 40  # tokens: recurrences pass a chunk of 64, attention passes its window
SEVERAL = 1  # a layer that is neither the first nor the last, where it matters

Override = Callable[[tuple[int, ...]], torch.Tensor]


def model_module(model: str):
    return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def config(model: str, name: str, **settings):
    """A config for 4 layers of width 24 whose attention is transformers' eager one."""
    module = importlib.import_module(f"transformers.models.{model}.configuration_{model}")
    made = getattr(module, name)(**{"hidden_size": WIDTH, "num_hidden_layers": 4, **settings})
    made._attn_implementation = "eager"
    return made


def draw_weights(
    module: nn.Module, draw: Draw, special: Mapping[str, Override], zero: tuple[str, ...] = ()
) -> Tensors:
    """Fresh weights by name: none at 0 or 1, where a wrong place could go unseen.

    Matrices keep their outputs' variance; norms lie around their initial value; what else there
    is must be in `special` or `zero`, by its name or the last part of it.
    """
    drawn = {}
    for name, value in module.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if name in zero or last in zero:
            drawn[name] = torch.zeros(value.shape)
        elif (drawer := special.get(name, special.get(last))) is not None:
            drawn[name] = drawer(tuple(value.shape))
        elif value.ndim >= 2:
            drawn[name] = draw.normal(*value.shape, scale=value[0].numel() ** -0.5)
        elif "norm" in name:
            drawn[name] = draw.normal(*value.shape, scale=0.3) + value.detach()
        elif last == "bias":
            drawn[name] = draw.normal(*value.shape, scale=0.5)
        else:
            raise ValueError(f"no rule draws {name} {tuple(value.shape)}")
    return drawn


def ssm_gates(draw: Draw) -> dict[str, Override]:
    """A_log, dt_bias and D of Mamba-2 and the gated delta rules.

    The stronger the decays, the more cancels in A_log's gradient, a sum over all tokens, and the
    less float32 says of it.
    """
    return dict(
        A_log=lambda shape: torch.log(draw.uniform(*shape, low=0.3, high=1.5)),
        dt_bias=lambda shape: draw.normal(*shape, mean=-1),
        D=lambda shape: draw.normal(*shape),
    )


def layer(
    draw: Draw,
    module: nn.Module,
    forward: Callable,
    time: int,
    special: Mapping[str, Override] | None = None,
    zero: tuple[str, ...] = (),
    **settings,
) -> Case:
    """The case of a module; `forward(call, x) -> y`, where `call` is the module on the weights."""
    module.eval()
    given = draw_weights(module, draw, special or {}, zero)
    fixed = {k: v for k, v in given.items() if k.rsplit(".", 1)[-1] in zero or k in zero}

    def run(inputs, weights):
        def call(*args, **kwargs):
            return torch.func.functional_call(module, {**fixed, **weights}, args, kwargs)

        return dict(y=forward(call, inputs["x"]))

    source = f"transformers {transformers.__version__} {type(module).__name__}"
    weights = {k: v for k, v in given.items() if k not in fixed}
    return Case(source, run, dict(x=draw.normal(BATCH, time, WIDTH)), weights, settings)


def positions(time: int) -> torch.Tensor:
    return torch.arange(time)[None].expand(BATCH, time)


def attention(
    draw: Draw,
    module: nn.Module,
    rotary: nn.Module | None,
    window: int | None = None,
    special: Mapping[str, Override] | None = None,
    allowed: torch.Tensor | None = None,
    rotary_args: tuple = (),
    **settings,
) -> Case:
    """The case of an attention layer under a causal or windowed mask."""
    time = SHORT
    added = mask(time, window) if allowed is None else allowed

    def forward(call, x):
        kwargs = {}
        if rotary is not None:
            kwargs["position_embeddings"] = rotary(x, positions(time), *rotary_args)
        return call(x, attention_mask=added, **kwargs)[0]

    return layer(draw, module, forward, time, special, window=window, **settings)


# --- softmax attention ----------------------------------------------------------------------------

PLAIN_ROPE = dict(rope_type="default", rope_theta=500.0)


@case
def gpt_oss_attention(draw: Draw) -> Case:
    """Grouped heads, a window and sinks."""
    m = model_module("gpt_oss")
    c = config(
        "gpt_oss",
        "GptOssConfig",
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=9,
        attention_bias=False,
        rope_parameters=PLAIN_ROPE,
    )
    return attention(
        draw,
        m.GptOssAttention(c, 0),
        m.GptOssRotaryEmbedding(c),
        c.sliding_window,
        dict(sinks=lambda shape: draw.normal(*shape)),
        heads=4,
        kv_heads=2,
        head_dim=8,
        rope_theta=500.0,
    )


@case
def gemma2_attention(draw: Draw) -> Case:
    """A soft cap and a scale of its own; multi-query."""
    m = model_module("gemma2")
    c = config(
        "gemma2",
        "Gemma2Config",
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=4,
        attn_logit_softcapping=2.0,
        sliding_window=9,
        rope_parameters=PLAIN_ROPE,
    )
    made = attention(
        draw,
        m.Gemma2Attention(c, 1),
        m.Gemma2RotaryEmbedding(c),
        None,
        heads=4,
        kv_heads=1,
        head_dim=8,
        rope_theta=500.0,
        scale=0.5,
        soft_cap=2.0,
    )
    return made


@case
def gemma3_attention(draw: Draw) -> Case:
    """RMSNorm of queries and keys with scales 1 + w, and a window."""
    m = model_module("gemma3")
    c = config(
        "gemma3",
        "Gemma3TextConfig",
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=16,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    return attention(
        draw,
        m.Gemma3Attention(c, 0),
        m.Gemma3RotaryEmbedding(c),
        c.sliding_window,
        rotary_args=("sliding_attention",),
        heads=4,
        kv_heads=2,
        head_dim=8,
        rope_theta=c.rope_parameters["sliding_attention"]["rope_theta"],
        scale=0.25,
        norm_eps=c.rms_norm_eps,
    )


@case
def qwen3_next_attention(draw: Draw) -> Case:
    """An output gate, partial RoPE and normed queries and keys."""
    m = model_module("qwen3_next")
    c = config(
        "qwen3_next",
        "Qwen3NextConfig",
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rope_parameters=dict(PLAIN_ROPE, partial_rotary_factor=0.5),
    )
    return attention(
        draw,
        m.Qwen3NextAttention(c, 3),
        m.Qwen3NextRotaryEmbedding(c),
        heads=4,
        kv_heads=2,
        head_dim=8,
        rope_theta=500.0,
        rope_fraction=0.5,
        norm_eps=c.rms_norm_eps,
    )


@case
def llama4_chunked_attention(draw: Draw) -> Case:
    """Attention within fixed chunks of 16 tokens, interleaved RoPE, norms without scales."""
    m = model_module("llama4")
    chunk = 16
    c = config(
        "llama4",
        "Llama4TextConfig",
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attention_chunk_size=chunk,
        rope_parameters=PLAIN_ROPE,
        use_qk_norm=True,
    )
    function = transformers.masking_utils.chunked_causal_mask_function(
        chunk, torch.zeros(1, dtype=torch.int64)
    )
    t = torch.arange(SHORT)
    allowed = torch.where(function(0, 0, t[:, None], t[None, :]), 0.0, -torch.inf)[None, None]
    return attention(
        draw,
        m.Llama4TextAttention(c, 0),
        m.Llama4TextRotaryEmbedding(c),
        allowed=allowed,
        heads=4,
        kv_heads=2,
        head_dim=8,
        rope_theta=500.0,
        chunk=chunk,
        norm_eps=c.rms_norm_eps,
    )


@case
def llama4_nope_attention(draw: Draw) -> Case:
    """Full attention without positions; logits grow with them instead, in steps of 8 tokens."""
    m = model_module("llama4")
    c = config(
        "llama4",
        "Llama4TextConfig",
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_temperature_tuning=True,
        floor_scale=8,
        attn_scale=0.3,
    )
    return attention(
        draw,
        m.Llama4TextAttention(c, 3),
        m.Llama4TextRotaryEmbedding(c),
        heads=4,
        kv_heads=2,
        head_dim=8,
        floor_scale=8,
        attn_scale=0.3,
    )


# --- latent attention -----------------------------------------------------------------------------


def _mla_sizes(**settings) -> dict:
    return dict(
        num_attention_heads=3,
        num_key_value_heads=3,
        kv_lora_rank=10,
        qk_rope_head_dim=4,
        qk_nope_head_dim=6,
        v_head_dim=5,
        **settings,
    )


@case
def deepseek_v3_attention(draw: Draw) -> Case:
    """Latent attention with low-rank queries and interleaved RoPE."""
    m = model_module("deepseek_v3")
    c = config(
        "deepseek_v3", "DeepseekV3Config", **_mla_sizes(q_lora_rank=12), rope_parameters=PLAIN_ROPE
    )
    return attention(
        draw,
        m.DeepseekV3Attention(c, 0),
        m.DeepseekV3RotaryEmbedding(c),
        heads=3,
        q_rank=12,
        kv_rank=10,
        rope_dim=4,
        nope_dim=6,
        value_dim=5,
        rope_theta=500.0,
        norm_eps=1e-6,
    )


@case
def kimi_linear_attention(draw: Draw) -> Case:
    """Latent attention without positions; queries are not compressed."""
    m = model_module("kimi_linear")
    c = config("kimi_linear", "KimiLinearConfig", **_mla_sizes(q_lora_rank=None))
    return attention(
        draw,
        m.KimiLinearAttention(c, 0),
        None,
        heads=3,
        q_rank=None,
        kv_rank=10,
        rope_dim=4,
        nope_dim=6,
        value_dim=5,
        norm_eps=1e-6,
    )
