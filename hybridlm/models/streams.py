"""Hyper-connections: several residual streams, mixed anew for each token before each half of a layer.

The layer's halves read one vector, a weighted sum of the streams. Their output is added to every
stream with a weight of its own, after the streams are mixed with a matrix whose rows and columns sum
to about 1 (manifold-constrained hyper-connections, arXiv 2512.24880; hyper-connections: arXiv
2409.19606). Weights and matrix are functions of the token's streams.

What goes from layer to layer as the residual stream is the mean of the streams. The streams
themselves travel beside it (`SequenceContext.cross_layer`). A layer adds the difference between the
residual stream and their mean to all streams: it is 0, unless the layer is the first, whose streams
are all the embedding, or an analysis changed the residual stream.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.norms import at_least_float32
from hybridlm.settings.bounds import PositiveFloat, PositiveInt, settings

CHANNEL = "streams"


@settings
class StreamsConfig:
    """Several residual streams.

    Attributes:
      count: how many; 4 in GLM-5.3-Flash.
      iterations: of Sinkhorn's normalisation of the mixing matrix.
      eps: added to its entries and to the sums that they are divided by, and to the weights of the
        streams.
    """

    count: PositiveInt = 4
    iterations: PositiveInt = 20
    eps: PositiveFloat = 1e-6

    @property
    def outputs(self) -> int:
        """Numbers that are made for each token: two weights a stream, and the matrix."""
        return (2 + self.count) * self.count

    def layer_flops(self, width: int, halves: int) -> float:
        """FLOPs of a token in a layer of so many halves."""
        into = self.count * width * self.outputs
        mixed = (2 + self.count) * self.count * width
        return 2.0 * halves * (into + mixed)


class Weights(NamedTuple):
    """How a half reads and writes the streams; float32.

    Attributes:
      read_BTN: weight of each stream in the half's input.
      write_BTN: weight of the half's output in each stream.
      mix_BTNM: stream n's part of the new stream m.
    """

    read_BTN: jax.Array
    write_BTN: jax.Array
    mix_BTNM: jax.Array


class Connection(nnx.Module):
    """The weights of one half of a layer."""

    def __init__(self, config: StreamsConfig, width: int, norm_eps: float, *, rngs: nnx.Rngs):
        shape = (config.count * width, config.outputs)
        kernel = 0.02 * jax.random.normal(rngs.params(), shape)
        self.kernel = nnx.Param(kernel, axes=("embed", "norm"), decay=True)
        self.bias = nnx.Param(jnp.zeros(config.outputs), axes=("norm",))
        self.scales = nnx.Param(jnp.ones(3), axes=("norm",))
        self.config, self.norm_eps = config, norm_eps

    def weights(self, streams_BTND: jax.Array) -> Weights:
        """The weights for each token, from its streams."""
        n, eps = self.config.count, self.config.eps
        flat_BTF = at_least_float32(streams_BTND.reshape(*streams_BTND.shape[:2], -1))
        mean_square = jnp.mean(jnp.square(flat_BTF), axis=-1, keepdims=True)
        flat_BTF = flat_BTF * jax.lax.rsqrt(mean_square + self.norm_eps)
        highest = jax.lax.Precision.HIGHEST
        made = jnp.dot(flat_BTF, self.kernel[...].astype(flat_BTF.dtype), precision=highest)
        read, write, mix = jnp.split(made, [n, 2 * n], axis=-1)
        read_b, write_b, mix_b = (b[None, None] for b in jnp.split(self.bias[...], [n, 2 * n]))
        read_s, write_s, mix_s = self.scales[...]
        mix = jax.nn.softmax((mix * mix_s + mix_b).reshape(*mix.shape[:2], n, n), axis=-1) + eps
        mix = mix / (jnp.sum(mix, axis=-2, keepdims=True) + eps)
        for _ in range(self.config.iterations - 1):
            mix = mix / (jnp.sum(mix, axis=-1, keepdims=True) + eps)
            mix = mix / (jnp.sum(mix, axis=-2, keepdims=True) + eps)
        return Weights(
            jax.nn.sigmoid(read * read_s + read_b) + eps,
            2 * jax.nn.sigmoid(write * write_s + write_b),
            mix,
        )


def received(streams_BTND: jax.Array, x_BTD: jax.Array) -> jax.Array:
    """The streams of a layer whose residual stream is `x_BTD`."""
    return streams_BTND + (x_BTD - mean(streams_BTND))[:, :, None]


def mean(streams_BTND: jax.Array) -> jax.Array:
    """The residual stream (B, T, D) of these streams."""
    return jnp.mean(at_least_float32(streams_BTND), axis=2).astype(streams_BTND.dtype)


def read(streams_BTND: jax.Array, weights: Weights) -> jax.Array:
    """The input (B, T, D) of a half."""
    y_BTD = jnp.sum(weights.read_BTN[..., None] * streams_BTND, axis=2)
    return y_BTD.astype(streams_BTND.dtype)


def write(streams_BTND: jax.Array, weights: Weights, y_BTD: jax.Array) -> jax.Array:
    """The streams after a half with output `y_BTD`."""
    dtype = streams_BTND.dtype
    mixed_BTMD = jnp.einsum("btnm,btnd->btmd", weights.mix_BTNM.astype(dtype), streams_BTND)
    return weights.write_BTN.astype(dtype)[..., None] * y_BTD[:, :, None] + mixed_BTMD
