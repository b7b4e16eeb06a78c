"""Multi-head latent attention: keys and values of all heads from one small latent per token."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers import patterns, rows, token_cache
from hybridlm.models.mixers.base import LayerSpec, MixerConfig, SequenceContext
from hybridlm.models.mixers.capabilities import AttentionMixer, by_head
from hybridlm.models.mixers.spans import WindowSize, mean_keys
from hybridlm.models.mixers.token_cache import TokenCache
from hybridlm.models.norms import RMSNorm
from hybridlm.models.positional import Rope, RopeConfig, check_rope, no_rope
from hybridlm.parallel import ops
from hybridlm.settings.bounds import Epsilon, NonNegativeInt, PositiveFloat, PositiveInt, settings
from kernels_pallas.attention import AttentionState, decode_attention


@settings
class MLAConfig(MixerConfig):
    """Multi-head latent attention.

    The cache holds of each token its latent and one key part that all heads share. A head's key is
    its own projection of the latent followed by the shared part; its value is another projection of
    the latent.

    Attributes:
      heads: query heads, each with keys and values of its own.
      kv_rank: size of the latent.
      q_rank: size of the queries' latent; None projects them directly.
      qk_nope: size of the part of a key that comes from the latent.
      qk_rope: size of the part of a key that all heads share, 0 for none.
      value_dim: size of a head's values.
      rope: RoPE's settings, for the shared part; None leaves it unrotated (Kimi Linear's NoPE).
      scale: factor on logits; None is (qk_nope + qk_rope) ** -0.5.
      norm_eps: epsilon of the norms of the latents; None is `model.norm_eps`. DeepSeek-V3's is 1e-6.
      window: tokens a query attends to, its own included; None for all (Motif-3 has both).
    """

    kind_name: ClassVar[str] = "mla"
    other_names: ClassVar[Mapping[str, str]] = {
        "multi_head_latent_attention": "",
        "latent_attention": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads",)
    equation: ClassVar[str] = "k_s = [W_k c_s; rope(W_r x_s)], v_s = W_v c_s, c_s = norm(W_c x_s)"
    source: ClassVar[str] = "arXiv 2405.04434 sec. 2.1; arXiv 2412.19437 sec. 2.1.1"
    operations: ClassVar[tuple[str, ...]] = ("attention",)

    heads: PositiveInt
    kv_rank: PositiveInt = 512
    q_rank: PositiveInt | None = None
    qk_nope: PositiveInt = 128
    qk_rope: NonNegativeInt = 64
    value_dim: PositiveInt = 128
    rope: RopeConfig | None = RopeConfig()
    scale: PositiveFloat | None = None
    norm_eps: Epsilon | None = None
    window: WindowSize | None = None

    def __post_init__(self):
        if self.qk_rope:
            check_rope(self.rope, self.qk_rope)

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "MLA":
        return MLA(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        """Counts training, which expands the latents into every head's keys and values."""
        queries = self.heads * (self.qk_nope + self.qk_rope)
        rank = self.q_rank
        q = width * queries if rank is None else rank * (width + queries)
        down = width * (self.kv_rank + self.qk_rope)
        up = self.kv_rank * self.heads * (self.qk_nope + self.value_dim)
        out = self.heads * self.value_dim * width
        attended = (queries + self.heads * self.value_dim) * mean_keys(seq_len, self.window)
        return 2 * (q + down + up + out + attended)

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del width
        return self.reach(seq_len) * (self.kv_rank + self.qk_rope) * itemsize

    def reach(self, seq_len: int) -> int:
        return min(seq_len, self.window or seq_len)

    @property
    def key_size(self) -> int:
        """Size of a head's queries and keys."""
        return self.qk_nope + self.qk_rope

    @property
    def mechanism(self) -> str:
        window = f", window {self.window}" if self.window else ""
        return f"latent attention {self.kv_rank}{window}, {'RoPE' if self._rotates else 'NoPE'}"

    @property
    def _rotates(self) -> bool:
        return self.rope is not None and self.qk_rope > 0


class MLA(AttentionMixer):
    """The mixer of `MLAConfig`.

    Training and prefill expand the latents into every head's keys and values. Decoding does not:
    q . (W_k c) = (W_k^T q) . c, so a token attends to the cached latents directly, as to the single
    key head of an MQA, and W_v is applied to the resulting mixture of latents.
    """

    def __init__(self, config: MLAConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        heads, rank = config.heads, config.kv_rank
        self.config = config
        norm_eps = config.norm_eps or spec.norm_eps
        queries = heads * config.key_size
        if config.q_rank is None:
            self.q = Linear(spec.width, queries, ("embed", "heads"), rngs=rngs)
        else:
            self.q = LowRank(spec.width, config.q_rank, queries, norm_eps, rngs=rngs)
        self.kv_down = Linear(spec.width, rank + config.qk_rope, ("embed", "rank"), rngs=rngs)
        self.kv_norm = RMSNorm(rank, norm_eps)
        expanded = heads * (config.qk_nope + config.value_dim)
        self.kv_up = Linear(rank, expanded, ("rank", "heads"), rngs=rngs)
        values = heads * config.value_dim
        self.out = Linear(values, spec.width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)
        self.rope = Rope(config.rope, config.qk_rope) if config._rotates else no_rope
        self.scale = config.scale or config.key_size**-0.5
        self.window = config.window  # `narrowed` lowers it

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        q_BTHK, latent_BTL = self._project(x_BTD, context)
        k_BTHK, v_BTHV = self._expanded(latent_BTL, context)
        ids_BT = context.segment_ids_BT
        out_BTHV, _ = ops.attention(
            q_BTHK, k_BTHK, v_BTHV, segment_ids=ids_BT, window=self.window, scale=self.scale
        )

        def visible(rows_BQ: jax.Array) -> jax.Array:
            return rows.visible_keys(ids_BT, rows_BQ, self.window)

        out_BTHV = patterns.observed(
            context, out_BTHV, q_BTHK, k_BTHK, v_BTHV, visible, scale=self.scale
        )
        return self._output(context.hook("hook_z", out_BTHV))

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> TokenCache:
        """An empty cache of latents, each with its shared key part, for `max_len` tokens or a window."""
        size = self.config.kv_rank + self.config.qk_rope
        return token_cache.empty(batch, min(max_len, self.window or max_len), ((size,),), dtype)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: TokenCache
    ) -> tuple[jax.Array, TokenCache]:
        ids_BT = context.segment_ids_BT
        q_BTHK, latent_BTL = self._project(x_BTD, context)
        if x_BTD.shape[1] == 1:
            state = token_cache.write(state, (latent_BTL,), ids_BT, self.window)
            valid_BS = token_cache.visible(state, ids_BT, self.window)
            return self._output(self._decode(q_BTHK, state.entries[0], valid_BS)), state
        (past_BSL,), past_ids_BS = token_cache.in_order(state)
        out_BTHV, _ = ops.attention(
            q_BTHK,
            *self._expand(latent_BTL),
            segment_ids=ids_BT,
            window=self.window,
            scale=self.scale,
            initial_state=AttentionState(*self._expand(past_BSL), past_ids_BS),
        )
        return self._output(out_BTHV), token_cache.write(state, (latent_BTL,), ids_BT, self.window)

    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> rows.AttentionRows:
        q_BTHK, latent_BTL = self._project(x_BTD, context)
        k_BTHK, _ = self._expand(latent_BTL)
        visible_B1QT = rows.visible_keys(context.segment_ids_BT, rows_BQ, self.window)
        q_BQHK = rows.take(q_BTHK, rows_BQ)
        return rows.probabilities(q_BQHK, k_BTHK, visible_B1QT, scale=self.scale)

    def query_key_weights(self) -> tuple[jax.Array, jax.Array]:
        """A head's keys are its own part and the shared one; projections to latents are no head's."""
        config = self.config
        q = self.q if config.q_rank is None else self.q.up
        kv_LHE = self.kv_up.kernel[...].reshape(config.kv_rank, config.heads, -1)
        own_HP = by_head(kv_LHE[..., : config.qk_nope], config.heads)
        shared_P = self.kv_down.kernel[...][:, config.kv_rank :].reshape(-1)
        shared_HP = jnp.broadcast_to(shared_P[None], (config.heads, shared_P.size))
        return by_head(q.kernel[...], config.heads), jnp.concatenate([own_HP, shared_HP], axis=1)

    @property
    def has_window(self) -> bool:
        return True

    def narrowed(self, window: int) -> "MLA":
        copy = nnx.clone(self)
        copy.window = min(window, self.window or window)
        return copy

    def _project(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """Queries, and latents each followed by the rotated key part that all heads share."""
        config = self.config
        q_BTHK = self.q(x_BTD).reshape(*x_BTD.shape[:2], config.heads, -1)
        q_nope, q_rope = jnp.split(q_BTHK, [config.qk_nope], axis=-1)
        latent_BTL, k_rope_BTR = jnp.split(self.kv_down(x_BTD), [config.kv_rank], axis=-1)
        positions_BT = context.positions_BT
        k_rope_BTR = self.rope(k_rope_BTR[:, :, None], positions_BT)[:, :, 0]
        q_BTHK = jnp.concatenate([q_nope, self.rope(q_rope, positions_BT)], axis=-1)
        latent_BTL = jnp.concatenate([self.kv_norm(latent_BTL), k_rope_BTR], axis=-1)
        return context.hook("hook_q", q_BTHK), context.hook("hook_kv_latent", latent_BTL)

    def _expanded(
        self, latent_BTL: jax.Array, context: SequenceContext
    ) -> tuple[jax.Array, jax.Array]:
        """`_expand` for tokens whose keys and values have names."""
        k_BTHK, v_BTHV = self._expand(latent_BTL)
        return context.hook("hook_k", k_BTHK), context.hook("hook_v", v_BTHV)

    def _expand(self, latent_BTL: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Every head's keys and values."""
        config = self.config
        latent_BTL, k_rope_BTR = jnp.split(latent_BTL, [config.kv_rank], axis=-1)
        kv_BTHE = self.kv_up(latent_BTL).reshape(*latent_BTL.shape[:2], config.heads, -1)
        k_nope_BTHU, v_BTHV = jnp.split(kv_BTHE, [config.qk_nope], axis=-1)
        shape = (*k_nope_BTHU.shape[:3], config.qk_rope)
        k_rope_BTHR = jnp.broadcast_to(k_rope_BTR[:, :, None], shape)
        return jnp.concatenate([k_nope_BTHU, k_rope_BTHR], axis=-1), v_BTHV

    def _decode(self, q_B1HK: jax.Array, cache_BSL: jax.Array, valid_BS: jax.Array) -> jax.Array:
        """One token's attention to the cached latents, without expanding them."""
        config = self.config
        kernel_LHE = self.kv_up.kernel[...].astype(q_B1HK.dtype)
        kernel_LHE = kernel_LHE.reshape(config.kv_rank, config.heads, -1)
        k_LHU, v_LHV = jnp.split(kernel_LHE, [config.qk_nope], axis=-1)
        q_nope_BHU, q_rope_BHR = jnp.split(q_B1HK[:, 0], [config.qk_nope], axis=-1)
        q_BHL = jnp.concatenate([jnp.einsum("bhu,lhu->bhl", q_nope_BHU, k_LHU), q_rope_BHR], -1)
        # The shared key part is mixed like a value, then dropped: slicing the cache would copy it.
        cache_BS1L = cache_BSL[:, :, None]
        mixed_BHL = decode_attention(q_BHL, cache_BS1L, cache_BS1L, valid_BS, scale=self.scale)
        return jnp.einsum("bhl,lhv->bhv", mixed_BHL[..., : config.kv_rank], v_LHV)[:, None]

    def _output(self, out_BTHV: jax.Array) -> jax.Array:
        return self.out(out_BTHV.reshape(*out_BTHV.shape[:2], -1))


class LowRank(nnx.Module):
    """up(rmsnorm(down(x)))."""

    def __init__(self, d_in: int, rank: int, d_out: int, eps: float, *, rngs: nnx.Rngs):
        self.down = Linear(d_in, rank, ("embed", "rank"), rngs=rngs)
        self.norm = RMSNorm(rank, eps)
        self.up = Linear(rank, d_out, ("rank", "heads"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.up(self.latent(x))

    def latent(self, x: jax.Array) -> jax.Array:
        """rmsnorm(down(x))."""
        return self.norm(self.down(x))
