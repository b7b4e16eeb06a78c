"""Retrieval scores, entropy and masking, on heads that are known by construction."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import known
import numpy as np
import pytest
import small

from hybridlm import probes
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model
from hybridlm.probes import Head, Prompt, Prompts


@pytest.fixture(scope="module")
def model_and_params():
    return known.induction()


@pytest.mark.parametrize("before", [0, 5])
def test_an_induction_head_scores_1_and_a_uniform_one_its_exact_mass(model_and_params, before):
    """By both definitions, also after another document, with batches of 2 of 5 prompts."""
    made = known.prompts(5)
    if before:
        made = known.packed(made, before)
    table = probes.retrieval_heads(*model_and_params, made, batch=2)
    by_head = {(e.layer, e.head): e for e in table}
    assert set(by_head) == {(0, 0), (1, 0), (1, 1)}
    assert by_head[1, 0].mass == pytest.approx(1, abs=1e-4) and by_head[1, 0].copy == 1
    keys = known.VOCAB + 1  # the question's end is token VOCAB of its document
    assert by_head[1, 1].mass == pytest.approx(3 / keys, rel=1e-6) and by_head[1, 1].copy == 0
    assert by_head[0, 0].mass == 0  # the window of 2 does not reach the needle
    assert by_head[1, 0].samples == 5 and by_head[1, 0].mixer == "full"
    assert probes.top_heads(table, 1) == (Head(1, 0),) == probes.top_heads(table, 1, "copy")


def test_a_copied_token_must_lie_in_the_needle_and_be_the_one_predicted(model_and_params):
    made = known.prompts(4)
    elsewhere = dataclasses.replace(made, needle_NT=np.roll(made.needle_NT, 3, axis=1))
    table = probes.retrieval_heads(*model_and_params, elsewhere)
    assert {e.copy for e in table} == {0.0}
    wrong = made.tokens_NT.copy()
    wrong[:, -1] = (wrong[:, -1] + 1) % known.VOCAB
    table = probes.retrieval_heads(*model_and_params, dataclasses.replace(made, tokens_NT=wrong))
    assert {(e.layer, e.head): e.copy for e in table}[1, 0] == pytest.approx(2 / 3)


def test_entropy_is_exact(model_and_params):
    """Uniform attention has entropy 1 and ln n nats; a window of 2 has at most ln 2 nats."""
    table = probes.attention_entropy(*model_and_params, known.prompts(3))
    by_head = {(e.layer, e.head): e for e in table}
    keys = known.VOCAB + 1 - np.arange(4)
    assert by_head[1, 1].entropy == pytest.approx(1, abs=1e-6)
    assert by_head[1, 1].nats == pytest.approx(np.log(keys).mean(), rel=1e-6)
    assert by_head[1, 1].keys == keys.mean() and by_head[0, 0].keys == 2
    assert by_head[0, 0].nats == pytest.approx(
        np.log(2), rel=1e-6
    )  # its queries are 0: uniform too
    only = probes.attention_entropy(*model_and_params, known.prompts(3), [Head(1, 0)])
    assert [(e.layer, e.head) for e in only] == [(1, 0)]
    # The question's end copies: nearly 0. The three queries before it find no match.
    assert 0.5 < only.entries[0].entropy < 0.8


def test_one_pass_gives_both_tables(model_and_params):
    made = known.prompts(3)
    both = probes.heads_at_once(*model_and_params, made)
    separate = (
        probes.retrieval_heads(*model_and_params, made),
        probes.attention_entropy(*model_and_params, made),
    )
    for one, other in zip(both, separate, strict=True):
        assert one.probe == other.probe and len(one) == len(other) == 3
        for row, again in zip(one.rows(), other.rows()):
            assert row == pytest.approx(again, abs=1e-6)


def test_entropy_of_a_short_question_and_of_none():
    """A query with one key has entropy 0; queries before the document's start are left out."""
    model, params = known.induction()
    row = np.asarray([3, 5, 7], np.int32)
    made = Prompts.of([Prompt(row, [(0, 1)], (2, 3)), Prompt(row, [], (2, 2))], length=4)
    (entry,) = probes.attention_entropy(model, params, made, [Head(1, 1)])
    # The queries have 2 keys and 1 key: entropies 1 and 0.
    assert entry.keys == 1.5 and entry.entropy == pytest.approx(0.5)
    assert {e.samples for e in probes.retrieval_heads(model, params, made)} == {1}


def test_only_masking_a_head_that_retrieval_needs_changes_answers(model_and_params):
    """The random draws depend on the seed alone."""
    made = known.prompts(6)
    table = probes.head_masking(*model_and_params, made, [Head(1, 0)], draws=8, seed=3)
    whole, without, *random = table
    assert (whole.which, whole.accuracy, whole.exact) == ("none", 1, 1) and whole.heads == ()
    assert (without.which, without.heads) == ("retrieval", ("1.0",))
    assert without.accuracy == 0 and without.nll > whole.nll + 1
    assert len(random) == 8 and {e.heads for e in random} == {("0.0",), ("1.1",)}
    for entry in random:
        if entry.heads == ("1.1",):
            assert (entry.nll, entry.other_nll) == (whole.nll, whole.other_nll)
        else:  # without layer 0, keys lack the token before
            assert entry.accuracy < 0.5
    again = probes.head_masking(*model_and_params, made, [Head(1, 0)], draws=8, seed=3)
    assert again == table
    same = probes.head_masking(*model_and_params, made, [Head(1, 0)], draws=3, layers=[1])
    assert [e.heads for e in same if e.which == "random"] == [("1.1",)] * 3
    none = probes.head_masking(*model_and_params, made, [Head(1, 0)], draws=3, layers=[])
    assert [e.which for e in none] == ["none", "retrieval"]
    with pytest.raises(ValueError, match="no attention head 0.1"):
        probes.mask_heads(*model_and_params, [Head(0, 1)])


def test_masking_changes_only_the_heads_rows_of_the_output_projection(model_and_params):
    model, params = model_and_params
    masked = probes.mask_heads(model, params, [Head(1, 0)])
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, old), new in zip(leaves, jax.tree.leaves(masked), strict=True):
        want = np.array(old)
        if jax.tree_util.keystr(path) == "['unit']['1_full']['mixer']['out']['kernel']":
            assert np.any(want[0, : known.VOCAB])
            want[0, : known.VOCAB] = 0
        np.testing.assert_array_equal(new, want)


@pytest.fixture(scope="module")
def scanned():
    """Makes a model that scans a pattern twice, with prompts that follow another document."""

    def make(pattern):
        model = Model.of(small.model_config(pattern, depth=2 * len(pattern.split())))
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda p: (0.4 * rng.standard_normal(p.shape)).astype(p.dtype), model.abstract
        )
        return model, params, known.packed(known.prompts(3), 6)

    return make


def test_scores_equal_the_mixers_own_rows_in_scanned_layers(scanned):
    model, params, made = scanned("nha")
    assert probes.head_counts(model) == (4, 4)
    table = probes.retrieval_heads(model, params, made)
    assert len(table) == len(probes.all_heads(model)) == 8
    shares = probes.slot_share(model, params, made)
    assert {(e.layer, e.mixer) for e in shares} == {(0, "nha"), (1, "nha")}

    @jax.jit
    def top_layer(params):
        module = model.bind(params)
        context = SequenceContext(jnp.asarray(made.segment_ids_NT), jnp.asarray(made.positions_NT))
        x = module.embed(jnp.asarray(made.tokens_NT))
        *below, (_, block) = module.blocks()
        for _, other in below:
            x = other(x, context)
        every = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        return block.mixer.attention_rows(block.mixer_input(x, context), context, every).probs_BHQT

    probs = np.asarray(top_layer(params), np.float64)
    end = int(made.rows_NQ[0, 0])
    real = made.segment_ids_NT != 0
    for h in range(4):
        got = next(e for e in table if (e.layer, e.head) == (1, h))
        mass = np.mean([probs[n, h, end][made.needle_NT[n]].sum() for n in range(3)])
        assert got.mass == pytest.approx(mass, abs=1e-6)
        share = next(e.share for e in shares if (e.layer, e.head) == (1, h))
        assert share == pytest.approx(1 - probs[:, h].sum(-1)[real].mean(), abs=1e-5)


def test_tables_give_json_records_and_text(model_and_params):
    table = probes.retrieval_heads(*model_and_params, known.prompts(2))
    records = json.loads(json.dumps(table.records(step=30)))
    assert records[0] == {"kind": "retrieval_heads", "step": 30} | table.rows()[0]
    header, first = table.text().splitlines()[1:3]
    assert header.split() == ["layer", "mixer", "head", "mass", "copy", "samples"]
    assert first.split()[:3] == ["0", "two", "0"]
