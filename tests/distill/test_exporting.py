"""A composed hybrid of a converted checkpoint: it exports where a class holds it, and obeys the laws."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm import convert
from hybridlm.distill.compose import composed
from hybridlm.distill.hype import with_hype
from hybridlm.distill.transfer import transfer
from hybridlm.errors import ConvertError
from hybridlm.models.mixers import SequenceContext
from hybridlm.runs import open_model, save_model
from tests.distill.subjects import teacher

FIXTURES = pathlib.Path(__file__).parents[1] / "convert" / "fixtures"


def hybrid(fixture, mixer, keep):
    """The checkpoint with another mixer in all layers with attention but those of `keep`.

    Args:
      fixture: its folder, or settings of attention for a drawn model whose heads are as wide as it.
    """
    if isinstance(fixture, str):
        ours = open_model(FIXTURES / fixture)
    else:
        ours = teacher(depth=3, **fixture)
    return composed(ours, transfer(ours, mixer).student, keep)


def subject(kind):
    """A hybrid that obeys the laws: of a mixer, or "hype", Lightning attention under HyPE.

    HyPE's logits grow with the position, here nearly twofold within 12 tokens.
    """
    if kind == "hype":
        return with_hype(hybrid("llama", dict(kind="lightning"), {1, 3}), 4.0)
    return hybrid("llama", dict(kind=kind), {1, 3})


#: Gated DeltaNet as in layer 1 of the fixture, because the class has one size.
GDN = dict(kind="gdn", heads=1, value_heads=1, head_dim=4, value_dim=4, conv_width=2)


MAMBA = dict(kind="mamba2")

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "fixture, mixer, keep, architecture",
    [
        pytest.param(fixture, mixer, keep, architecture, marks=marks, id=name)
        for name, fixture, mixer, keep, architecture, marks in (
            ("windows of Llama", "llama", dict(window=8), {0, 3}, "SmolLM3ForCausalLM", ()),
            ("NoPE in Llama", "llama", dict(rope=None), {1, 2, 4}, "SmolLM3ForCausalLM", SLOW),
            ("windows of Qwen2", "qwen2", dict(window=8), {1}, "Qwen2ForCausalLM", SLOW),
            ("windows of Qwen3", "qwen3", dict(window=8), {0}, "Qwen3ForCausalLM", SLOW),
            (
                "GDN and gated attention",
                "qwen3_5_dense",
                GDN,
                {0, 1},
                "Qwen3NextForCausalLM",
                SLOW,
            ),
            (
                "short convolutions in Qwen3",
                "qwen3",
                dict(kind="short_conv"),
                {0},
                "Lfm2ForCausalLM",
                SLOW,
            ),
            ("Mamba-2 in Llama", {}, MAMBA, {1}, "BambaForCausalLM", SLOW),
            (
                "Mamba-2 and NoPE",
                dict(rope=None),
                MAMBA,
                {0},
                "GraniteMoeHybridForCausalLM",
                SLOW,
            ),
        )
    ],
)
def test_a_hybrid_that_a_class_holds_is_exported_there(
    fixture, mixer, keep, architecture, tmp_path
):
    """And comes back with the same logits bit for bit."""
    found = hybrid(fixture, dict(kind="attention") | mixer, keep)
    save_model(found, tmp_path / "hybrid")
    made = open_model(tmp_path / "hybrid")
    fit = convert.export(made.model, made.params, tmp_path / "exported")
    again = open_model(tmp_path / "exported")
    assert fit.family.architecture == architecture == again.settings["architecture"]
    x = np.random.default_rng(0).integers(0, found.config.vocab_size, (2, 20))
    np.testing.assert_array_equal(again.logits(x), found.logits(x))


@pytest.mark.parametrize(
    "fixture, mixer, sentence",
    [
        ("llama", dict(kind="gdn"), "Qwen3NextForCausalLM: layer 0 has mixer.qk_norm False"),
        ("qwen3", dict(kind="nha"), "the nearest is .*: layer 1 is native hybrid attention"),
        ("llama", dict(kind="gla"), "the nearest is .*: layer 1 is GLA"),
    ],
    ids=lambda x: x["kind"] if isinstance(x, dict) else "",
)
def test_a_hybrid_that_no_class_holds_is_refused_in_one_sentence(
    fixture, mixer, sentence, tmp_path
):
    found = hybrid(fixture, mixer, {0})
    with pytest.raises(ConvertError, match=sentence) as refusal:
        convert.export(found.model, found.params, tmp_path / "exported")
    assert "\n" not in str(refusal.value) and not (tmp_path / "exported").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gdn", "nha", "hype"])
def test_decoding_a_hybrid_is_its_forward_pass(kind):
    """Prefill, then one token at a time, from the states of both kinds of layers."""
    found = subject(kind)
    x = jnp.asarray(np.random.default_rng(1).integers(0, found.config.vocab_size, (2, 12)))
    ids = jnp.ones((2, 1), jnp.int32)

    @jax.jit
    def decoded(params):
        module = found.model.bind(params)

        def one(state, position):
            context = SequenceContext(ids, jnp.full((2, 1), position))
            logits, state = module.extend(x[:, position][:, None], context, state)
            return state, logits[:, 0]

        first = SequenceContext(jnp.ones((2, 5), jnp.int32), jnp.tile(jnp.arange(5), (2, 1)))
        head, state = module.extend(x[:, :5], first, module.init_decode(2, 12))
        _, tail = jax.lax.scan(one, state, jnp.arange(5, 12))
        return jnp.concatenate([head, jnp.moveaxis(tail, 0, 1)], axis=1)

    np.testing.assert_allclose(decoded(found.params), found.logits(x), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gdn", "gla", "nha", "hype"])
def test_documents_packed_into_a_row_of_a_hybrid_are_separate(kind):
    found = subject(kind)
    rng = np.random.default_rng(3)
    first, second = (rng.integers(0, found.config.vocab_size, n) for n in (7, 12))
    packed = found.logits(np.concatenate([first, second])[None], [[1] * 7 + [2] * 12])
    np.testing.assert_allclose(packed[0, :7], found.logits(first[None])[0], atol=1e-4)
    np.testing.assert_allclose(packed[0, 7:], found.logits(second[None])[0], atol=1e-4)
