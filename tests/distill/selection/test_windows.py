"""Windows of Native Hybrid Attention as data: a planted layer is found, and nothing is compiled for it."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm.data.settings import DataConfig
from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.distill.selection.compilations import Compilations
from hybridlm.distill.selection.search import LayerSearch
from hybridlm.distill.selection.selection import SelectorSettings
from hybridlm.distill.selection.settings import SearchSettings
from hybridlm.distill.selection.windows import windows
from hybridlm.distill.transfer import transfer
from hybridlm.distill.windows import full_layers, nha_layers, with_windows
from hybridlm.errors import UserError
from hybridlm.runs import open_model
from kernels_pallas import dispatch
from tests.distill.subjects import FULL, opened, teacher, tokens
from tests.models.small import model_config

DEPTH, NARROW = 4, 3
PLANTED = 2  # the layer whose attention matters


@pytest.fixture(autouse=True)
def reference_forms():
    """Uses the reference forms, which compile fastest."""
    with dispatch.auto_means("reference"):
        yield


def hybridised(ours, **settings):
    return transfer(ours, dict(kind="nha", window=None, slots=4) | settings).student


def narrowed(model, window=NARROW):
    return with_windows(model, dict.fromkeys(nha_layers(model.config), window))


@pytest.fixture(scope="module")
def both():
    wide = hybridised(teacher(depth=DEPTH))
    return wide, narrowed(wide), windows(wide, narrowed(wide))


@pytest.mark.parametrize("kept", [(), (1,), (0, 3), (0, 1, 2, 3)])
def test_every_choice_is_the_model_with_these_windows(both, kept):
    wide, _, model = both
    chosen = {i: None if i in kept else NARROW for i in range(DEPTH)}
    want = with_windows(wide, chosen).logits(tokens())
    np.testing.assert_allclose(model.opened(kept).logits(tokens()), want, atol=1e-5)


def test_no_choice_compiles_anything(both):
    _, _, model = both
    x = tokens()
    np.asarray(model.opened(()).logits(x))
    with Compilations() as compilations:
        found = [np.asarray(model.opened(kept).logits(x)) for kept in ((0,), (1, 3), (0, 1, 2, 3))]
    assert compilations.count == 0
    assert all((a != b).any() for a, b in zip(found, found[1:])), "the windows did nothing"
    with compilations:
        jnp.linalg.norm(jnp.ones(5)).block_until_ready()
    assert compilations.count > 0, "compilations are not counted"


def test_the_weights_are_held_once(both):
    wide, _, model = both
    assert model.model.count() == wide.model.count() + DEPTH  # a window for each layer


def test_wide_windows_without_slots_are_the_teacher_with_its_biases():
    """As of Qwen2.5, whose queries, keys and values have biases."""
    ours = teacher(depth=2, bias="qkv")
    named = dict(ours.model.by_name(ours.params))
    for name in named:
        if name.endswith("bias"):
            named[name] = named[name] + np.linspace(-1, 1, named[name].size, dtype=np.float32)
    ours = dataclasses.replace(ours, params=ours.model.from_names(named))
    student = hybridised(ours, empty_slots="masked")
    for model in (student, with_windows(student, {0: tokens().shape[1]})):
        np.testing.assert_allclose(model.logits(tokens()), ours.logits(tokens()), atol=2e-5)
    assert np.abs(narrowed(student).logits(tokens()) - ours.logits(tokens())).max() > 1e-3


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A byte model with text, in which the mixer of one layer alone adds to the stream."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    words = "the union of states shall be a hybrid and its windows are short".split()
    lines = (" ".join(rng.choice(words, 40)) for _ in range(60))
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = model_config("full", depth=DEPTH, mixers=dict(full=FULL), vocab_size=258)
    ours = hybridised(
        dataclasses.replace(opened(config), tokenizer=ByteTokenizer(), path=folder), slots=1
    )
    named = dict(ours.model.by_name(ours.params))
    for i in set(range(DEPTH)) - {PLANTED}:
        named[f"layers.{i}.mixer.out.kernel"] = 0 * named[f"layers.{i}.mixer.out.kernel"]
    data = DataConfig(
        {"text": dict(kind="jsonl", path=str(text))},
        seq_len=32,
        batch_size=4,
        heldout_fraction=0.5,
        token_cache=str(folder / "tokens"),
    )
    return dataclasses.replace(ours, params=ours.model.from_names(named), data=data)


@pytest.mark.parametrize("method", ["kl", "greedy", "exhaustive"])
def test_a_search_finds_the_layer_that_needs_a_global_window(planted, tmp_path, method):
    settings = SearchSettings(
        methods=(method,), keep=1, length=32, samples=2, sets=2, batch=4, context=1000
    )
    search = LayerSearch(
        planted, narrowed(planted), tmp_path, settings, SelectorSettings("kl"), join=windows
    )
    (found,) = search.run()
    search.close()
    assert found.selection.kept == (PLANTED,) and np.abs(found.values).max() < 1e-6
    assert min(search.table(frozenset({0}), "kl")) > 1e-6
    saved = open_model(tmp_path / method)
    spans = [mixer.window for _, mixer in saved.config.layer_mixers()]
    assert spans == [None if i == PLANTED else NARROW for i in range(DEPTH)]


def test_models_that_differ_in_more_than_windows_are_refused():
    wide = hybridised(teacher(depth=2))
    with pytest.raises(UserError, match="same windows: there is nothing to choose"):
        windows(wide, wide)
    with pytest.raises(UserError, match="layer 0 has attention and no Native Hybrid"):
        windows(teacher(depth=2), wide)
    with pytest.raises(UserError, match="layer 0 differs in more than its window"):
        windows(wide, hybridised(teacher(depth=2), window=3, empty_slots="masked"))
    other = narrowed(hybridised(teacher(depth=2, seed=1)))
    with pytest.raises(UserError, match="differs: models of other windows must have the same"):
        windows(wide, other)
    with pytest.raises(UserError, match="layer 5 has no Native Hybrid Attention"):
        with_windows(wide, {5: 3})
    with pytest.raises(UserError, match="a window is at least 0 tokens, not -5, in layer 0"):
        with_windows(wide, {0: -5})
    with pytest.raises(UserError, match="no layer of Native Hybrid Attention"):
        nha_layers(teacher(depth=2).config)


def test_full_layers_are_one_in_each_block():
    assert full_layers(32, 4, 3) == (3, 11, 19, 27)
    assert full_layers(30, 3) == (0, 10, 20) and full_layers(30, 0) == ()
    with pytest.raises(UserError, match="4 full layers do not divide the model's 30 layers"):
        full_layers(30, 4)
    with pytest.raises(UserError, match="residue must be from 0 to 7"):
        full_layers(32, 4, 8)
