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


# --- recurrences ----------------------------------------------------------------------------------


@case
def recurrent_gemma_block(draw: Draw) -> Case:
    """Griffin's recurrent block; its three projections' biases are zero, for ours have none."""
    m = model_module("recurrent_gemma")
    c = config(
        "recurrent_gemma",
        "RecurrentGemmaConfig",
        num_attention_heads=2,
        lru_width=24,
        conv1d_width=4,
    )

    def forward(call, x):
        return call(x, positions(LONG), None, use_cache=False)[0]

    def blocks(shape):
        return draw.normal(*shape, scale=shape[-1] ** -0.5)

    special = dict(
        recurrent_param=lambda shape: draw.normal(*shape, mean=-3.0),
        input_gate_weight=blocks,
        recurrent_gate_weight=blocks,
        input_gate_bias=lambda shape: draw.normal(*shape),
        recurrent_gate_bias=lambda shape: draw.normal(*shape),
    )
    return layer(
        draw,
        m.RecurrentGemmaRecurrentBlock(c, 0),
        forward,
        LONG,
        special,
        ("linear_x.bias", "linear_y.bias", "linear_out.bias"),
        heads=2,
        conv_width=4,
    )


def _plain(call, x):
    return call(x)


@case
def mamba2_mixer(draw: Draw) -> Case:
    """Two groups of B and C, gated norm per group."""
    m = model_module("mamba2")
    c = config(
        "mamba2",
        "Mamba2Config",
        num_heads=6,
        head_dim=8,
        state_size=5,
        n_groups=2,
        expand=2,
        conv_kernel=4,
        chunk_size=16,
    )
    return layer(
        draw,
        m.Mamba2Mixer(c, 0),
        _plain,
        LONG,
        ssm_gates(draw),
        heads=6,
        head_dim=8,
        state=5,
        groups=2,
        conv_width=4,
        norm_eps=c.layer_norm_epsilon,
    )


class FalconH1Pair(nn.Module):
    """What a Falcon-H1 layer adds to its residual before the MLP, its input norm left out."""

    def __init__(self, config, module):
        super().__init__()
        self.mamba = module.FalconH1Mixer(config, 0)
        self.mamba.mup_vector = module.compute_mup_vector(config)
        self.self_attn = module.FalconH1Attention(config, 0)
        self.config = config

    def forward(self, x, cos_sin, added):
        y = self.mamba(x) * self.config.ssm_out_multiplier
        z, _ = self.self_attn(x * self.config.attention_in_multiplier, cos_sin, added)
        return y + z * self.config.attention_out_multiplier


@case
def falcon_h1_pair(draw: Draw) -> Case:
    """Mamba-2 and attention side by side on one input, with Falcon-H1's multipliers."""
    m = model_module("falcon_h1")
    multipliers = dict(
        ssm_in_multiplier=1.25,
        ssm_out_multiplier=0.7,
        attention_in_multiplier=0.9,
        attention_out_multiplier=1.1,
        key_multiplier=0.8,
        ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 0.7],
    )
    c = config(
        "falcon_h1",
        "FalconH1Config",
        num_attention_heads=3,
        num_key_value_heads=1,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_n_groups=2,
        mamba_d_state=5,
        mamba_d_conv=4,
        mamba_chunk_size=16,
        mamba_rms_norm=True,
        mamba_norm_before_gate=False,
        rope_parameters=PLAIN_ROPE,
        **multipliers,
    )
    rotary = m.FalconH1RotaryEmbedding(c)

    def forward(call, x):
        return call(x, rotary(x, positions(LONG)), mask(LONG, None))

    return layer(
        draw,
        FalconH1Pair(c, m),
        forward,
        LONG,
        ssm_gates(draw),
        attention_heads=3,
        kv_heads=1,
        head_dim=8,
        rope_theta=500.0,
        heads=4,
        mamba_head_dim=8,
        groups=2,
        state=5,
        conv_width=4,
        norm_eps=c.rms_norm_eps,
        **multipliers,
    )


@case
def minimax_lightning_attention(draw: Draw) -> Case:
    """Fixed decays, different in each layer."""
    m = model_module("minimax")
    c = config(
        "minimax",
        "MiniMaxConfig",
        num_attention_heads=4,
        head_dim=6,
        block_size=16,
        layer_types=["linear_attention"] * 4,
    )

    def forward(call, x):
        return call(x, None, None)[0]

    module = m.MiniMaxLightningAttention(c, SEVERAL)
    return layer(
        draw,
        module,
        forward,
        LONG,
        heads=4,
        head_dim=6,
        layer=SEVERAL,
        layers=4,
        norm_eps=module.norm.variance_epsilon,
    )


@case
def xlstm_layer(draw: Draw) -> Case:
    """The mLSTM of xLSTM 7B: stabilised exponential input gates, soft-capped pre-activations."""
    m = model_module("xlstm")
    c = config(
        "xlstm",
        "xLSTMConfig",
        num_heads=2,
        qk_dim_factor=0.5,
        v_dim_factor=1.0,
        chunk_size=16,
        mode="inference",
        autocast_kernel_dtype="float32",
        gate_soft_cap=4.0,
    )

    def forward(call, x):
        return call(x)[0]

    # Around this the normaliser is at its floor of 1 for some tokens and above it for others.
    special = {"igate_preact.bias": lambda shape: draw.normal(*shape, scale=0.5, mean=-1.5)}
    return layer(
        draw,
        m.xLSTMLayer(c),
        forward,
        LONG,
        special,
        heads=2,
        key_dim=6,
        value_dim=12,
        gate_soft_cap=4.0,
        eps=c.eps,
        norm_eps=c.norm_eps,
    )


@case
def lfm2_short_conv(draw: Draw) -> Case:
    m = model_module("lfm2")
    c = config("lfm2", "Lfm2Config", conv_L_cache=3, layer_types=["conv"] * 4)
    return layer(draw, m.Lfm2ShortConv(c, 0), _plain, SHORT, conv_width=3)


@case
def qwen3_next_gated_delta_net(draw: Draw) -> Case:
    """Two value heads for each key head."""
    m = model_module("qwen3_next")
    c = config(
        "qwen3_next",
        "Qwen3NextConfig",
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=6,
        linear_value_head_dim=5,
        linear_conv_kernel_dim=4,
    )
    return layer(
        draw,
        m.Qwen3NextGatedDeltaNet(c, 0),
        _plain,
        LONG,
        ssm_gates(draw),
        key_heads=2,
        value_heads=4,
        key_dim=6,
        value_dim=5,
        conv_width=4,
        norm_eps=c.rms_norm_eps,
    )


@case
def olmo_hybrid_gated_delta_net(draw: Draw) -> Case:
    """Negative eigenvalues allowed: beta reaches 2."""
    m = model_module("olmo_hybrid")
    c = config(
        "olmo_hybrid",
        "OlmoHybridConfig",
        num_attention_heads=2,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=6,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
        linear_allow_neg_eigval=True,
    )
    module = m.OlmoHybridGatedDeltaNet(c, 0)
    return layer(
        draw,
        module,
        _plain,
        LONG,
        ssm_gates(draw),
        heads=2,
        key_dim=6,
        value_dim=8,
        conv_width=4,
        norm_eps=module.o_norm.variance_epsilon,
    )


@case
def kimi_linear_delta_attention(draw: Draw) -> Case:
    """A decay for each channel of the keys, from a low-rank projection."""
    m = model_module("kimi_linear")
    c = config(
        "kimi_linear",
        "KimiLinearConfig",
        linear_num_heads=2,
        linear_head_dim=6,
        linear_conv_kernel_dim=4,
    )
    return layer(
        draw,
        m.KimiLinearDeltaAttention(c, 0),
        _plain,
        LONG,
        ssm_gates(draw),
        heads=2,
        head_dim=6,
        conv_width=4,
        norm_eps=c.rms_norm_eps,
    )


@case
def glm5_next_delta_attention(draw: Draw) -> Case:
    """Kimi Delta Attention whose log decays are bounded from below."""
    m = model_module("glm5_next")
    c = config(
        "glm5_next",
        "Glm5NextTextConfig",
        linear_num_heads=2,
        linear_head_dim=6,
        linear_conv_kernel_dim=4,
        linear_lower_bound=-5.0,
    )
    return layer(
        draw,
        m.Glm5NextTextLinearAttention(c, 0),
        _plain,
        LONG,
        ssm_gates(draw),
        heads=2,
        head_dim=6,
        conv_width=4,
        lower_bound=-5.0,
        norm_eps=c.rms_norm_eps,
    )
