"""The exact attention of linear mixers: A @ v is the output of the operation."""

import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm.analysis import memory
from hybridlm.errors import UserError
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
    values = cache.get(prefix + "hook_v", cache.get("blocks.0.attn.hook_v"))
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
