"""Recurrent and convolutional token mixers of transformers' models; see `layers`."""

from layers import (
    LONG,
    PLAIN_ROPE,
    SEVERAL,
    SHORT,
    config,
    layer,
    model_module,
    positions,
    ssm_gates,
)
from ops import mask
from recording import Case, Draw, case
from torch import nn


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


def selective_gates(draw: Draw) -> dict:
    """`ssm_gates`, and the bias of the time step by the name that it has in Mamba-1."""
    gates = ssm_gates(draw)
    return gates | {"dt_proj.bias": gates["dt_bias"]}


@case
def mamba_mixer(draw: Draw) -> Case:
    """Mamba-1, its projections without biases."""
    m = model_module("mamba")
    c = config("mamba", "MambaConfig", state_size=5, conv_kernel=4, time_step_rank=3)
    sizes = dict(inner=48, state=5, rank=3, conv_width=4)
    return layer(draw, m.MambaMixer(c, 0), _plain, LONG, selective_gates(draw), **sizes)


@case
def falcon_mamba_mixer(draw: Draw) -> Case:
    """Norms without a scale, and biases of the projections."""
    m = model_module("falcon_mamba")
    c = config(
        "falcon_mamba",
        "FalconMambaConfig",
        state_size=4,
        conv_kernel=3,
        time_step_rank=2,
        expand=1,
        use_bias=True,
        mixer_rms_eps=1e-3,
    )
    sizes = dict(inner=24, state=4, rank=2, conv_width=3, mixer_eps=1e-3)
    mixer = m.FalconMambaMixer(c, 0, initialize_mixer_weights=False)
    return layer(draw, mixer, _plain, LONG, selective_gates(draw), **sizes)


@case
def jamba_mamba_mixer(draw: Draw) -> Case:
    """Norms with a learned scale."""
    m = model_module("jamba")
    c = config(
        "jamba", "JambaConfig", mamba_d_state=5, mamba_d_conv=4, mamba_dt_rank=3, rms_norm_eps=1e-5
    )
    sizes = dict(inner=48, state=5, rank=3, conv_width=4, mixer_eps=1e-5)
    return layer(draw, m.JambaMambaMixer(c, 0), _plain, LONG, selective_gates(draw), **sizes)


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
