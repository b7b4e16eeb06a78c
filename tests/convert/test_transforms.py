"""Transforms are inverse to each other bit for bit, and attention does not see them."""

import jax
import numpy as np
import pytest

from hybridlm.convert import transforms as t
from hybridlm.models.positional import Rope, RopeConfig

CASES = {
    "recut": (t.Recut((2, 2, 4)), [(3, 1, 2), (3, 1, 2), (2, 1, 2)]),
    "transposed": (t.TRANSPOSED, [(3, 5)]),
    "transposed experts": (t.TRANSPOSED, [(4, 3, 5)]),
    "pairs": (t.HalvesFromPairs(3, 8), [(24, 5)]),
    "pairs of part of a head": (t.HalvesFromPairs(2, 4, 6), [(24, 5), (24,)]),
    "split": (t.Split((2, 3, 3)), [(8, 5)]),
    "split by head": (t.Split((2, 1), groups=4), [(12, 5)]),
    "columns": (t.Columns(2), [(3, 5, 8)]),
    "columns in turn": (t.Columns(3, in_turn=True), [(5, 6)]),
    "joined": (t.Joined((2, 3)), [(2, 5), (3, 5)]),
    "joined by head": (t.Joined((1, 2), groups=3), [(3, 5), (6, 5)]),
    "stacked": (t.Stacked(), [(2, 3)] * 4),
    "convolution": (t.ConvKernel(), [(6, 1, 4)]),
    "reshaped": (t.Reshaped((2, 6), (12,)), [(12,)]),
    "chained": (t.chain(t.Split((2, 3), 2), t.TRANSPOSED), [(10, 7)]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_inverse_returns_the_tensors(name):
    transform, shapes = CASES[name]
    rng = np.random.default_rng(0)
    theirs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    ours = transform.ours(theirs)
    again = transform.theirs(ours)
    for x, y in zip(theirs, again, strict=True):
        np.testing.assert_array_equal(x, y)
    assert sorted(np.concatenate([x.ravel() for x in theirs])) == sorted(
        np.concatenate([x.ravel() for x in ours])
    )


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_known_without_numbers(name):
    transform, shapes = CASES[name]
    ours = transform.ours([np.zeros(shape, np.float32) for shape in shapes])
    found = jax.eval_shape(transform.theirs, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in ours])
    assert [x.shape for x in found] == shapes


def test_rotating_pairs_is_rotating_halves_of_permuted_rows():
    heads, size, rotated, time = 2, 10, 6, 7
    rng = np.random.default_rng(1)
    weight, x = rng.normal(size=(heads * size, 5)), rng.normal(size=(time, 5))
    positions = np.arange(time)
    angles = positions[:, None] / 100.0 ** (np.arange(rotated // 2) / (rotated // 2))

    def pairs(y):  # (T, heads, size), neighbours rotate
        z = (y[..., :rotated:2] + 1j * y[..., 1:rotated:2]) * np.exp(1j * angles)[:, None]
        both = np.stack([z.real, z.imag], -1).reshape(time, heads, rotated)
        return np.concatenate([both, y[..., rotated:]], -1)

    q = pairs((x @ weight.T).reshape(time, heads, size))
    (ours,) = t.HalvesFromPairs(heads, rotated).ours([weight])
    rope = Rope(RopeConfig(theta=100.0, fraction=rotated / size), size)
    halves = rope((x @ ours.T).reshape(1, time, heads, size).astype(np.float32), positions[None])[0]
    logits, mine = (np.einsum("thk,shk->hts", y, y) for y in (q, np.asarray(halves)))
    np.testing.assert_allclose(mine, logits, rtol=1e-4, atol=1e-4)
