"""Looking inside a model: activations by name, edits, gradients, attention."""

import dataclasses
import tarfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm.analysis import Inspected, ablate, activations, add, open_model, patch, scale
from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.errors import UserError
from hybridlm.generation.text import Sampling, generate_text
from hybridlm.models.hooks import Hooks
from hybridlm.models.mixers import SequenceContext
from hybridlm.train.step import REMAT
from tests.analysis.inspecting import inspected, packed
from tests.models import small

SCANNED = dict(depth=2)  # one scan over two repeats


@pytest.fixture(scope="module")
def m():
    return inspected("full", **SCANNED)


@pytest.fixture(scope="module")
def batch():
    return packed(1)


@pytest.fixture(scope="module")
def everything(m, batch):
    """(logits, cache) of all activations."""
    tokens, ids = batch
    return m.run_with_cache(tokens, segment_ids=ids)


def test_logits_are_those_of_the_forward_pass(m, batch, everything):
    tokens, ids = batch
    forward = m.opened.logits(tokens, ids)
    np.testing.assert_allclose(everything[0], forward, atol=1e-5)
    np.testing.assert_allclose(m.logits(tokens, segment_ids=ids), forward, atol=1e-5)


def test_names_and_shapes_are_those_of_the_cache(m, batch, everything):
    tokens, _ = batch
    hooks = m.hooks(tokens)
    assert list(hooks) == list(everything[1])
    assert hooks == {name: x.shape for name, x in everything[1].items()}
    for layer in range(2):
        assert hooks[f"blocks.{layer}.hook_resid_pre"] == (2, 20, 32)
        assert hooks[f"blocks.{layer}.attn.hook_pattern"] == (2, 4, 20, 20)
        assert hooks[f"blocks.{layer}.attn.hook_z"] == (2, 20, 4, 8)


def test_text_is_generated_as_asked_for():
    """The draws of the seed, at the temperature and from the tokens that are given."""
    opened = inspected("full", vocab_size=260).opened
    m = Inspected(dataclasses.replace(opened, tokenizer=ByteTokenizer()))
    options = dict(temperature=1.5, top_k=9, top_p=0.8)
    drawn = generate_text(m.model, m.params, ByteTokenizer(), "ab", 20, Sampling(**options), seed=3)
    assert m.generate("ab", 20, **options, seed=3) == "".join(drawn)


@pytest.mark.slow
@pytest.mark.parametrize("norms", ["prenorm", "sandwich", "parallel", "normed"])
def test_the_sums_of_the_residual_stream_close(norms, batch):
    tokens, ids = batch
    m = inspected("gla", depth=2, block=norms, residual_scale=0.7)
    _, cache = m.run_with_cache(tokens, lambda name: ".attn." not in name, segment_ids=ids)
    for layer in range(2):
        at = {n.removeprefix(f"blocks.{layer}."): x for n, x in cache.items()}
        before, middle = at["hook_resid_pre"], at.get("hook_resid_mid")
        if norms == "normed":  # the stream itself is normed before each half
            before = at["ln1.hook_normalized"]
        after_mixer = before + at["hook_attn_out"]
        if middle is not None:
            np.testing.assert_allclose(after_mixer, middle, atol=1e-5)
        if norms == "normed":
            after_mixer = at["ln2.hook_normalized"]
        np.testing.assert_allclose(
            after_mixer + at["hook_mlp_out"], at["hook_resid_post"], atol=1e-5
        )


def test_rows_of_a_pattern_sum_to_one_within_their_document(m, batch, everything):
    tokens, ids = batch
    for layer in range(2):
        pattern = np.asarray(everything[1][f"blocks.{layer}.attn.hook_pattern"])
        sums = np.where(ids != 0, 1.0, 0.0)[:, None]
        np.testing.assert_allclose(
            pattern.sum(-1), np.broadcast_to(sums, pattern.shape[:3]), atol=1e-5
        )
        across = (ids[:, :, None] != ids[:, None])[:, None]
        assert np.all(pattern[np.broadcast_to(across, pattern.shape)] == 0)


def test_a_pattern_times_the_values_is_the_output_of_attention(everything):
    cache = everything[1]
    for layer in range(2):
        at = f"blocks.{layer}.attn."
        values = np.repeat(cache[at + "hook_v"], 4 // cache[at + "hook_v"].shape[2], axis=2)
        z = np.einsum("bhqk,bkhv->bqhv", cache[at + "hook_pattern"], values)
        np.testing.assert_allclose(z, cache[at + "hook_z"], atol=1e-5)


def test_patching_an_activation_into_itself_changes_nothing(m, batch, everything):
    tokens, ids = batch
    logits, cache = everything
    names = [n for n in cache if ".hook_attn_scores" not in n]
    for chosen in (names, [n for n in cache if n.endswith("scores")]):
        edits = {name: patch(cache[name]) for name in chosen}
        again, kept = m.run_with_cache(tokens, (), edits=edits, segment_ids=ids)
        np.testing.assert_allclose(again, logits, atol=2e-4)
        assert not kept


def test_an_edit_of_a_scanned_layer_changes_only_what_follows_it(m, batch, everything):
    tokens, ids = batch
    edits = {"blocks.1.attn.hook_z": ablate(positions=(7, -1), heads=1)}
    _, cache = m.run_with_cache(tokens, "*hook_resid_post|*hook_z", edits=edits, segment_ids=ids)
    old = everything[1]
    below = "blocks.0.hook_resid_post"
    np.testing.assert_array_equal(cache[below], old[below])
    wanted = np.array(old["blocks.1.attn.hook_z"])
    wanted[:, [7, 19], 1] = 0
    np.testing.assert_allclose(cache["blocks.1.attn.hook_z"], wanted, atol=1e-6)
    changed = (
        np.abs(cache["blocks.1.hook_resid_post"] - old["blocks.1.hook_resid_post"]).max(-1) > 1e-6
    )
    assert set(np.nonzero(changed.any(0))[0]) == {7, 19} or ids[:, 19].max() == 0


def test_edits_of_patterns_are_of_heads_and_queries(m, batch, everything):
    tokens, ids = batch
    name = "blocks.1.attn.hook_pattern"
    edits = {name: scale(0.5, positions=range(3, 5), heads=2)}
    _, cache = m.run_with_cache(tokens, name, edits=edits, segment_ids=ids)
    wanted = np.array(everything[1][name])
    wanted[:, 2, 3:5] *= 0.5
    np.testing.assert_allclose(cache[name], wanted, atol=1e-6)


def test_positions_and_heads_that_do_not_exist_are_refused(m, batch):
    tokens, _ = batch
    for edit, what in (
        (ablate(positions=20), "positions has 20, and blocks.1.attn.hook_z has 20: from 0 to 19"),
        (ablate(positions=(0, -21)), "positions has -21"),
        (ablate(heads=4), "heads has 4, and blocks.1.attn.hook_z has 4: from 0 to 3"),
    ):
        with pytest.raises(UserError, match=what):
            m.run_with_hooks(tokens, {"blocks.1.attn.hook_z": edit})
    with pytest.raises(UserError, match="without an axis for heads"):
        ablate(heads=0).check("hook_log_decay", (4,), (2, 20), one_end=True)
    x = jnp.ones((1, 3, 2))
    for outside in (3, -4):  # traced, an index outside the axis selects nothing
        np.testing.assert_array_equal(jax.jit(lambda p: ablate(positions=p)(x))(outside), x)


def test_padding_of_unequal_texts_is_no_token(m):
    class Letters:
        bos_id = 1

        def encode(self, text):
            return [ord(letter) - ord("a") + 2 for letter in text]

    both = Inspected(dataclasses.replace(m.opened, tokenizer=Letters()))
    texts = ["abcdefg", "hij"]
    logits, cache = both.run_with_cache(texts, "*1.attn.hook_pattern")
    assert not np.any(np.asarray(cache["blocks.1.attn.hook_pattern"])[1, :, 4:])
    np.testing.assert_allclose(logits[1, :4], both.logits(texts[1])[0], atol=1e-5)
    last = both.attention(texts, np.int64(1), rows=[-1])
    np.testing.assert_allclose(
        last[1, :, 0], cache["blocks.1.attn.hook_pattern"][1, :, 3], atol=1e-6
    )
    with pytest.raises(UserError, match="positions of hook_embed count from the end"):
        both.run_with_hooks(texts, {"hook_embed": ablate(positions=-1)})
    with pytest.raises(UserError, match="tokens have the shape"):
        both.logits([])
    assert m.hooks()["hook_embed"] == (1, 1, 32)


def test_a_model_first_used_under_jit_can_be_used_after_it(m):
    stored = jax.tree.map(np.asarray, m.opened.params)  # as checkpoints give them
    fresh = Inspected(dataclasses.replace(m.opened, params=stored))
    within = jax.jit(lambda tokens: fresh.logits(tokens))(jnp.ones((2, 20), jnp.int32))
    np.testing.assert_allclose(fresh.logits(np.ones((2, 20), int)), within, atol=1e-5)


def test_a_pattern_can_be_changed(m, batch, everything):
    """A query that attends to its own token alone has this token's value as its output."""
    tokens, ids = batch
    name = "blocks.1.attn.hook_pattern"
    edits = {name: patch(jnp.eye(20))}
    _, cache = m.run_with_cache(
        tokens, f"{name}|*1.attn.hook_z|*1.attn.hook_v", edits=edits, segment_ids=ids
    )
    values = np.repeat(cache["blocks.1.attn.hook_v"], 4, axis=2)
    np.testing.assert_allclose(cache["blocks.1.attn.hook_z"], values, atol=1e-6)


def test_values_and_positions_of_edits_do_not_compile_anew(m, batch):
    tokens, ids = batch
    program = activations._forward(m.model, jnp.float32, frozenset(), ())
    before = program._cache_size()
    for position, factor in ((3, 0.5), (4, 2.0), (9, -1.0)):
        edits = {"blocks.1.hook_mlp_out": scale(factor, positions=position)}
        m.run_with_hooks(tokens, edits, segment_ids=ids)
    assert program._cache_size() == before + 1


def test_the_program_holds_only_what_is_asked_for(m):
    """Without the pattern its results are the others, and it has no array of T x T more than none."""

    def lowered(*names):
        ints = jax.ShapeDtypeStruct((1, 77), jnp.int32)
        program = activations._forward(m.model, jnp.float32, frozenset(names), ())
        found = program.lower(m.params, ints, ints, {})
        return [x.shape for x in jax.tree.leaves(found.out_info)], found.as_text().count("77x77x")

    one, pattern = "blocks.1.hook_resid_post", "blocks.1.attn.hook_pattern"
    shapes, squares = lowered(one)
    assert shapes == [(1, 77, 40), (1, 77, 32)]
    assert squares == lowered()[1]
    shapes, more = lowered(one, pattern)
    assert shapes == [(1, 77, 40), (1, 4, 77, 77), (1, 77, 32)]
    assert more > squares


@pytest.mark.slow
def test_it_works_under_jit(m, batch, everything):
    tokens, ids = batch
    names = "blocks.*.hook_resid_post"

    @jax.jit
    def program(tokens, ids):
        return m.run_with_cache(tokens, names, segment_ids=ids)

    logits, cache = program(tokens, ids)
    np.testing.assert_allclose(logits, everything[0], atol=1e-5)
    assert set(cache) == {f"blocks.{i}.hook_resid_post" for i in range(2)}


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences(batch):
    tokens, ids = batch
    with jax.enable_x64(True):
        m = inspected("swa gdn", dtype="float64")
        names = ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_beta", "blocks.1.hook_resid_pre"]

        def loss(logits):
            return jnp.sum(jnp.sin(logits))

        value, found = m.gradients(tokens, loss, names, segment_ids=ids)
        _, cache = m.run_with_cache(tokens, names, segment_ids=ids)
        rng = np.random.default_rng(0)
        for name in names:
            direction = rng.standard_normal(cache[name].shape)
            sides = [
                loss(
                    m.run_with_hooks(
                        tokens, {name: patch(cache[name] + h * direction)}, segment_ids=ids
                    )
                )
                for h in (1e-5, -1e-5)
            ]
            slope = (sides[0] - sides[1]) / 2e-5
            np.testing.assert_allclose(np.sum(found[name] * direction), slope, rtol=1e-6)
        np.testing.assert_allclose(value, loss(m.logits(tokens, segment_ids=ids)), rtol=1e-12)


@pytest.mark.slow
def test_attention_gives_the_rows_asked_for(m, batch, everything):
    tokens, ids = batch
    found = m.attention(tokens, (0, 1), rows=(5, -1), segment_ids=ids)
    for layer in (0, 1):
        pattern = everything[1][f"blocks.{layer}.attn.hook_pattern"]
        np.testing.assert_allclose(found[layer], pattern[:, :, np.array([5, 19])], atol=1e-6)


def test_what_does_not_exist_is_said_in_one_sentence(m, batch):
    tokens, _ = batch
    with pytest.raises(UserError, match="near it are blocks.1.hook_resid_post"):
        m.run_with_cache(tokens, "blocks.1.hook_resid_pst")
    with pytest.raises(UserError, match="did you mean 'blocks.1.attn.hook_z'"):
        m.run_with_hooks(tokens, {"blocks.1.attn.hook_zz": ablate()})
    with pytest.raises(UserError, match="states_at has 20, and there are 20 tokens"):
        m.run_with_cache(tokens, states_at=(20,))
    with pytest.raises(UserError, match="layer is 2, and the model has 2"):
        m.attention(tokens, 2)
    with pytest.raises(ValueError, match="must lie in"):
        m.logits([[40]])
    with pytest.raises(ValueError, match="must keep"):
        m.run_with_hooks(tokens, {"blocks.1.attn.hook_z": lambda x: x[:, :-1]})


def test_a_checkpoint_of_a_run_opens_by_path_and_step(tmp_path, root, in_root):
    """A run that an older version wrote, elsewhere."""
    with tarfile.open(root / "tests" / "golden" / "run_at_step_3.tar.gz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    m = open_model(f"{tmp_path}/run@3")
    assert m.opened.step == 3
    assert m.tokens("Hi").tolist() == [
        [m.opened.tokenizer.bos_id, *m.opened.tokenizer.encode("Hi")]
    ]
    assert set(m.hooks("Hi")) >= {"hook_embed", "blocks.0.hook_resid_pre"}
    with pytest.raises(UserError, match="names step 3, and step is 4"):
        open_model(f"{tmp_path}/run@3", 4)
    again = m.at(3)
    assert again.opened.step == 3 and again.model is m.model
    jax.tree.map(np.testing.assert_array_equal, again.params, m.params)
    with pytest.raises(UserError, match="step 4"):
        m.at(4)


@pytest.mark.slow
def test_hooks_and_a_checkpointed_scan_go_together(m, batch, everything):
    """A context with hooks unrolls layers, whatever the caller asked for."""
    tokens, ids = batch

    @jax.jit
    def program(params):
        hooks = Hooks("blocks.1.hook_resid_post".__eq__)
        context = SequenceContext.of(jnp.asarray(ids, jnp.int32))._replace(hooks=hooks)
        m.model.bind(params).hidden_and_loss(jnp.asarray(tokens), context, remat=REMAT["full"])
        return hooks.kept

    (found,) = program(m.params).values()
    np.testing.assert_allclose(found, everything[1]["blocks.1.hook_resid_post"], atol=1e-5)


@pytest.mark.slow
def test_states_are_those_of_the_sequence_up_to_there():
    m = inspected("gdn hymba gsa")
    tokens, ids = packed(3)
    _, cache = m.run_with_cache(tokens, "*hook_state*", segment_ids=ids, states_at=(6, 13))
    assert list(cache) == [
        "blocks.0.attn.hook_state",
        "blocks.1.attn.recurrence.hook_state",
        "blocks.2.attn.hook_state_k",
        "blocks.2.attn.hook_state_v",
    ]
    _, short = m.run_with_cache(
        tokens[:, :7], "*hook_state*", segment_ids=ids[:, :7], states_at=(-1,)
    )
    for name, states in cache.items():
        np.testing.assert_allclose(states[:, 0], short[name][:, 0], atol=1e-5)
        assert states.shape[1] == 2
    norms = m.state_norms(tokens, (6, 13), segment_ids=ids)
    assert norms["blocks.0.attn.hook_state"].shape == (2, 2, 4)
    with pytest.raises(UserError, match="no activation"):
        m.run_with_cache(tokens, (), edits={"blocks.0.attn.hook_state": ablate()}, states_at=(6,))


@pytest.mark.slow
def test_states_are_those_of_the_edited_mixer():
    """Values twice as large make the memory twice as large, from the edited token on."""
    m = inspected("gdn")
    tokens, ids = packed(3, batch=1)
    ids = np.ones_like(ids)
    at = dict(segment_ids=ids, states_at=(6, 13))
    _, cache = m.run_with_cache(tokens, "*hook_state", **at)
    before, after = np.moveaxis(np.asarray(cache["blocks.0.attn.hook_state"]), 1, 0)
    for edit, wanted in (
        (scale(2.0), (2 * before, 2 * after)),
        (ablate(positions=range(7)), (0 * before, None)),
        (scale(3.0, positions=range(7, 20)), (before, None)),
    ):
        _, cache = m.run_with_cache(
            tokens, "*hook_state", edits={"blocks.0.attn.hook_v": edit}, **at
        )
        found = np.moveaxis(np.asarray(cache["blocks.0.attn.hook_state"]), 1, 0)
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)
        if wanted[1] is None:
            assert np.abs(found[1] - after).max() > 1e-3
        else:
            np.testing.assert_allclose(found[1], wanted[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsa", "hymba", "kda", "mlstm", "nha", "s6", "ssm3_mimo"])
def test_an_edit_that_changes_nothing_changes_no_state(name):
    m = inspected(name)
    tokens, ids = packed(zlib.crc32(name.encode()))
    names = "*.hook_state*"
    at = dict(segment_ids=ids, states_at=(6, 13, -1))
    _, cache = m.run_with_cache(tokens, names, **at)
    hooks = m.hooks(tokens)
    part = [
        n for n in hooks if n.startswith("blocks.0.attn.") and not n.endswith(("scores", "hook_in"))
    ]
    edits = {name: scale(1.0) for name in part}
    _, again = m.run_with_cache(tokens, names, edits=edits, **at)
    assert set(again) == set(cache)
    for state, x in cache.items():
        np.testing.assert_allclose(again[state], x, atol=1e-5 * (1 + np.abs(x).max()))


@pytest.mark.slow
def test_edited_scores_of_native_hybrid_attention_move_its_shares():
    """A sum with a large number puts each softmax on the tokens of the window, or on the slots."""
    m, (tokens, ids) = inspected("nha"), packed(9)
    at = "blocks.0.attn."
    for value in (60.0, -60.0):
        edits = {f"{at}hook_attn_scores": add(value)}
        _, cache = m.run_with_cache(
            tokens, f"{at}hook_pattern|{at}hook_slot_share", edits=edits, segment_ids=ids
        )
        sums = np.moveaxis(np.asarray(cache[f"{at}hook_pattern"]).sum(-1), 1, 2)
        some = ids != 0
        share = np.asarray(cache[f"{at}hook_slot_share"])
        np.testing.assert_allclose((share + sums)[some], 1, atol=1e-5)
        if value > 0:
            np.testing.assert_allclose(share[some], 0, atol=1e-5)


@pytest.mark.slow
def test_half_lives_are_those_of_the_log_decays():
    m = inspected("lightning rec mlstm")
    tokens, ids = packed(4)
    found = m.half_lives(tokens, segment_ids=ids)
    head = np.arange(1, 5)
    np.testing.assert_allclose(found["blocks.0.attn"], np.log(2) * 2.0 ** (8 * head / 4), rtol=1e-6)
    _, cache = m.run_with_cache(tokens, "blocks.1.attn.hook_log_decay", segment_ids=ids)
    decay = np.asarray(cache["blocks.1.attn.hook_log_decay"])[ids != 0]
    np.testing.assert_allclose(np.exp(decay.mean(0)) ** found["blocks.1.attn"], 0.5, rtol=1e-5)
    _, cache = m.run_with_cache(tokens, "blocks.2.attn.hook_in", segment_ids=ids)
    *_, (_, block) = m.model.bind(m.params).blocks()
    log_f = np.asarray(jax.nn.log_sigmoid(block.mixer.forget_gate(cache["blocks.2.attn.hook_in"])))[
        ids != 0
    ]
    np.testing.assert_allclose(found["blocks.2.attn"], -np.log(2) / log_f.mean(0), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(small.MIXERS))
def test_every_activation_of_every_mixer_is_on_the_path(name):
    """Its own value, patched into it, changes no logits; the logits depend on it."""
    m = inspected(name)
    tokens, ids = packed(zlib.crc32(name.encode()))
    logits, cache = m.run_with_cache(tokens, "blocks.0.attn", segment_ids=ids)
    np.testing.assert_allclose(logits, m.opened.logits(tokens, ids), atol=1e-4)
    chosen = [n for n in cache if "hook_index_" not in n]  # choices of tokens have no gradient
    if name == "nha_full":  # nothing ever leaves its window
        chosen.remove("blocks.0.attn.hook_log_decay")
    if name == "nha0":  # no query sees a key
        chosen.remove("blocks.0.attn.hook_attn_scores")
    assert {"hook_in", "hook_out"} < {n.rpartition(".")[2] for n in chosen}
    edits = {n: patch(x) for n, x in cache.items()}
    again = m.run_with_hooks(tokens, edits, segment_ids=ids)
    np.testing.assert_allclose(again, logits, atol=2e-3)
    _, slopes = m.gradients(tokens, lambda y: jnp.sum(jnp.sin(y)), chosen, segment_ids=ids)
    assert not [n for n in chosen if not np.any(slopes[n] != 0)]
