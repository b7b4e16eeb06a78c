"""The page of the gallery is up to date, and its pictures show what the mixers do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybridlm import gallery
from hybridlm.gallery import document, panels
from hybridlm.gallery.variants import VARIANTS
from hybridlm.models.mixers import LayerSpec, read_mixer
from hybridlm.models.mixers.base import SequenceContext
from tests.gallery.sheets import ROOT, sheet_of

pytestmark = pytest.mark.xdist_group("gallery")  # they share the sheets
WRITE = "run: python -m hybridlm.gallery.document"


def test_the_page_is_up_to_date():
    sheets = [sheet_of(name) for name in gallery.names(ROOT / "configs" / "gallery")]
    parts = {"models": document.models(sheets), "variants": document.variants(ROOT)}
    text = (ROOT / document.PAGE).read_text("utf-8")
    assert text == document.written(text, parts), WRITE
    assert all(mark in text for marks in document.MARKS.values() for mark in marks)


def test_the_drawings_are_up_to_date():
    folder = ROOT / document.DRAWINGS
    drawn = {f"{v.slug}.svg": document.drawing(ROOT, v) + "\n" for v in VARIANTS}
    assert {f.name: f.read_text("utf-8") for f in folder.glob("*.svg")} == drawn, WRITE


ATTENTION = dict(kind="attention", heads=2, head_dim=4)
LATENT = dict(kind="mla", heads=2, kv_rank=5, qk_nope=4, qk_rope=2, value_dim=3)


@pytest.mark.parametrize(
    "settings",
    [
        dict(ATTENTION, window=panels.SPAN),
        pytest.param(dict(ATTENTION, chunk=panels.CHUNK), marks=pytest.mark.slow),
        dict(LATENT, window=panels.SPAN),
    ],
    ids=["window", "chunk", "latent window"],
)
def test_a_query_depends_on_the_keys_that_its_picture_fills(settings):
    """The gradient of each output says which tokens it depends on."""
    config = read_mixer(settings, "mixer")
    mixer = config.build(LayerSpec(8, 1e-6, 1.0), rngs=nnx.Rngs(3))
    context = SequenceContext.of(jnp.ones((1, panels.TOKENS), jnp.int32))
    x = jax.random.normal(jax.random.key(4), (1, panels.TOKENS, 8))
    gradient = jax.jit(jax.jacrev(lambda x: mixer(x, context)[0].sum(-1)))(x)
    depends = np.abs(np.asarray(gradient))[:, 0].max(-1) > 0
    drawn = [
        [k <= q and panels.sees(config, q, k) for k in range(panels.TOKENS)]
        for q in range(panels.TOKENS)
    ]
    np.testing.assert_array_equal(depends, drawn)


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (32, 8), (12, 2), (10, 1), (64, 4)])
def test_drawn_heads_keep_their_groups(heads, kv_heads):
    group, groups = panels._groups(heads, kv_heads)
    assert group == min(heads // kv_heads, panels.HEADS)
    assert (groups == 1) == (kv_heads == 1) and group * groups <= 2 * panels.HEADS
