"""The exact attention of linear mixers: A @ v is the output of the operation."""

import zlib
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm.analysis import layers, memory
from hybridlm.errors import UserError
from hybridlm.models.mixers import KINDS
from hybridlm.models.mixers.base import Mixer, MixerConfig
from hybridlm.settings.bounds import settings
from tests.analysis.inspecting import inspected, packed
from tests.models import small

#: Parts whose output is a matrix times values, by mixer; None is the whole.
PARTS = {
    "hymba": ("attention", "recurrence"),
    "nested": ("conv", "full", "pair.swa", "pair.rec"),
    "nha": (None, "slots", "window"),
    "nha_llm": (None, "slots", "window"),
}
#: Mixers that write or read several values a token for each head.
SEVERAL = ("product", "product_grouped", "ssm3_mimo")


def check(name: str, part: str | None, seed: int) -> None:
    m = inspected(name, seed)
    tokens, ids = packed(seed)
    prefix = "blocks.0.attn." + ("" if part is None else f"{part}.")
    _, cache = m.run_with_cache(tokens, "blocks.0.attn", segment_ids=ids)
    output = next(
        cache[prefix + n] for n in ("hook_z", "hook_recurrence_out") if prefix + n in cache
    )
    names = (prefix + "hook_written", prefix + "hook_v", "blocks.0.attn.hook_v")
    values = next(cache[name] for name in names if name in cache)
    output, values = (np.asarray(x if x.ndim == 4 else x[..., None]) for x in (output, values))
    values = np.repeat(values, output.shape[2] // values.shape[2], axis=2)
    matrix = np.asarray(m.effective_attention(tokens, 0, part=part, segment_ids=ids))
    found = np.einsum("bhqk,bkhv->bqhv", matrix, values)
    np.testing.assert_allclose(
        found, output, atol=2e-5 * np.abs(output).max(), err_msg=f"{name} {part}"
    )
    one = m.effective_attention(tokens, 0, 1, part=part, segment_ids=ids)
    np.testing.assert_allclose(one, matrix[:, 1], atol=1e-6)
    later = np.triu(np.ones((20, 20), bool), 1)
    across = ids[:, :, None] != ids[:, None]
    outside = np.broadcast_to((later[None] | across)[:, None], matrix.shape)
    assert np.all(matrix[outside] == 0), f"{name} reads later tokens or other documents"


def test_the_matrix_times_the_values_is_the_output():
    check("lightning", None, seed=5)


@pytest.mark.slow
def test_heads_are_chosen_one_by_one_and_in_groups(monkeypatch):
    """In bfloat16 too, and the same program serves every head."""
    m, (tokens, ids) = inspected("lightning", dtype="bfloat16"), packed(5)
    whole = m.effective_attention(tokens, 0, segment_ids=ids)
    several = m.effective_attention(tokens, 0, [2, 0], segment_ids=ids)
    np.testing.assert_allclose(several, whole[:, np.array([2, 0])], atol=1e-6)
    one = [m.effective_attention(tokens, 0, head, segment_ids=ids) for head in (0, 3)]
    np.testing.assert_allclose(one[1], whole[:, 3], atol=1e-6)
    program = layers._effective(
        m.model, jnp.dtype(jnp.bfloat16), 0, layers._Names.of(m.model, 0, None)
    )
    assert program._cache_size() == 3  # four heads, two, one
    wanted = memory.receptive_field(np.asarray(whole), 0.9)
    monkeypatch.setattr(layers, "GROUP", 2 * 2 * 20 * 20)
    np.testing.assert_array_equal(m.receptive_field(tokens, 0, segment_ids=ids), wanted)
    monkeypatch.setattr(layers, "MOST", 2 * 4 * 20 * 20 - 1)
    with pytest.raises(UserError, match="4 heads of layer 0 would have 3,200 entries"):
        m.effective_attention(tokens, 0, segment_ids=ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(small.MIXERS) - set(SEVERAL)))
def test_every_mixer_has_its_exact_matrix(name):
    for part in PARTS.get(name, (None,)):
        check(name, part, seed=zlib.crc32(name.encode()))


@pytest.mark.slow
def test_the_parts_of_native_hybrid_attention_add_up():
    m, (tokens, ids) = inspected("nha"), packed(6)
    whole, slots, window = (
        m.effective_attention(tokens, 0, 2, part=part, segment_ids=ids)
        for part in (None, "slots", "window")
    )
    np.testing.assert_allclose(slots + window, whole, atol=1e-6)
    _, cache = m.run_with_cache(tokens, "blocks.0.attn.hook_pattern", segment_ids=ids)
    np.testing.assert_allclose(window, cache["blocks.0.attn.hook_pattern"][:, 2], atol=1e-6)


@pytest.mark.slow
def test_what_is_not_linear_is_refused():
    m = inspected("swa hymba+none none", mixers={n: small.MIXERS[n] for n in ("swa", "hymba")})
    tokens, _ = packed(7)
    with pytest.raises(UserError, match="name one of its parts attention, recurrence"):
        m.effective_attention(tokens, 1)
    with pytest.raises(UserError, match="no linear mixer"):
        m.effective_attention(tokens, 2)
    with pytest.raises(UserError, match="several values a token"):
        inspected("product").effective_attention(tokens, 0)
    with pytest.raises(UserError, match="is not linear in its values"):
        inspected("ssm3_mimo").effective_attention(tokens, 0)
    with pytest.raises(UserError, match="head is 4, and layer 0 has 4 heads"):
        m.effective_attention(tokens, 0, 4)


def test_a_receptive_field_counts_the_newest_tokens_that_hold_the_share():
    rng = np.random.default_rng(0)
    matrix = np.tril(rng.standard_normal((3, 9, 9)))
    matrix[1, 4] = 0
    found = memory.receptive_field(matrix, 0.7)
    for head in range(3):
        for query in range(9):
            weights = np.abs(matrix[head, query, : query + 1])[::-1]
            if weights.sum() == 0:
                assert np.isnan(found[head, query])
                continue
            count = next(n for n in range(1, 10) if weights[:n].sum() >= 0.7 * weights.sum())
            assert found[head, query] == count
    assert np.all(memory.receptive_field(np.eye(5), 0.9) == 1)
    assert jnp.asarray(found).shape == (3, 9)


@settings
class HalfConfig(MixerConfig):
    """A mixer as a user writes one: each token adds half of the token before it, squared or not."""

    kind_name: ClassVar[str] = "half"
    equation: ClassVar[str] = "y_t = x_t + x_{t-1} / 2"
    source: ClassVar[str] = "a test"
    power: int = 1
    named: bool = True

    def build(self, spec, *, rngs):
        return Half(self)

    def flops_per_token(self, width, seq_len):
        return 0

    def state_bytes(self, width, seq_len, itemsize=2):
        return 0


class Half(Mixer):
    """The mixer of `HalfConfig`."""

    def __init__(self, config):
        self.config = config

    def __call__(self, x_BTD, context):
        if not self.config.named:
            return self.sum(x_BTD)
        return context.hook("hook_z", self.sum(context.hook("hook_v", x_BTD)))

    def sum(self, x_BTD):
        return x_BTD + jnp.pad(x_BTD[:, :-1] ** self.config.power, ((0, 0), (1, 0), (0, 0))) / 2

    def init_state(self, batch, max_len, dtype):
        return ()

    def extend(self, x_BTD, context, state):
        return self(x_BTD, context), state


@pytest.mark.slow
def test_a_mixer_of_a_users_own_has_names_and_its_matrix(monkeypatch):
    """Without doing anything its input and output; with names for values and output, its matrix."""
    monkeypatch.setitem(KINDS, "half", HalfConfig)
    mixers = dict(
        plain=dict(kind="half", named=False),
        named=dict(kind="half"),
        square=dict(kind="half", power=2),
    )
    m = inspected("plain named square", mixers=mixers)
    tokens, _ = packed(8, batch=1, time=5)
    own = [n for n in m.hooks(tokens) if n.startswith("blocks.0.attn.")]
    assert own == ["blocks.0.attn.hook_in", "blocks.0.attn.hook_out"]
    matrix = m.effective_attention(tokens, 1, 3)
    np.testing.assert_array_equal(matrix[0], np.eye(5) + np.eye(5, k=-1) / 2)
    with pytest.raises(UserError, match="layer 2 .square. is not linear in its values"):
        m.effective_attention(tokens, 2)
    with pytest.raises(UserError, match="layer 0 .plain. has no values"):
        m.effective_attention(tokens, 0)
