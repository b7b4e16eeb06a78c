"""Sources of answers: what counts in batches, however examples are packed, cut and stored."""

import json

import numpy as np
import pytest
from data_helpers import BYTES, draw_texts, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.data import bigram_bits_per_byte, open_pipeline, open_shards, open_tokenizer, tokenize
from hybridlm.data.loss_mask import LossMask, MaskWriter, mask_bytes
from hybridlm.data.packing import best_fit, best_fit_sequence, concat_sequence
from hybridlm.data.settings import DataConfig
from hybridlm.data.sources import read_source
from hybridlm.errors import ConfigError, DataError

TOKENIZER = open_tokenizer(BYTES)


def write(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return str(path)


def prompts(path, pairs, **keys):
    names = keys.get("prompt_key", "prompt"), keys.get("completion_key", "completion")
    return read_source(
        {"kind": "prompts", "path": write(path, *(dict(zip(names, p)) for p in pairs)), **keys}, "s"
    )


def draw_pairs(rng, count, longest=9):
    """Prompts and completions, all different."""
    questions, answers = draw_texts(rng, count, longest), draw_texts(rng, count, longest)
    return [(f"{q} {i}?", f" {a} {i}") for i, (q, a) in enumerate(zip(questions, answers))]


def pipeline(tmp_path, pairs, **changes):
    source = {"kind": "prompts", "path": prompts(tmp_path / "a.jsonl", pairs).path}
    given = {"seq_len": 48, "batch_size": 4, "heldout_fraction": 0.3, **changes}
    data = DataConfig(sources={"a": source}, **given)
    return open_pipeline(data, seed=0, workdir=tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), documents=st.lists(st.lists(st.booleans(), min_size=1), min_size=1))
def test_any_range_of_a_mask_is_read_back(data, documents, tmp_path_factory):
    """Over documents that end inside bytes, and over several shards."""
    cut = data.draw(st.integers(0, len(documents)))
    files, starts = [], [0]
    for part in (documents[:cut], documents[cut:]):
        path = tmp_path_factory.mktemp("m") / "m"
        with open(path, "wb") as file:
            writer = MaskWriter(file)
            for document in part:
                writer.add(np.array(document))
            writer.finish()
        files.append(np.frombuffer(path.read_bytes(), np.uint8))
        starts.append(starts[-1] + sum(map(len, part)))
        assert len(files[-1]) == mask_bytes(starts[-1] - starts[-2])
    bits = np.concatenate([np.array(d) for d in documents])
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(bits))] * 2)))
    assert (
        LossMask(tuple(files), np.array(starts)).read(start, stop).tolist()
        == bits[start:stop].tolist()
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), cross=st.booleans())
def test_packing_multiplies_the_weights_by_the_mask(data, cross):
    """In both packings, at any cut: the weights without a mask, where the target counts."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, 20, rng.integers(1, 9)))])
    total, seq_len = int(offsets[-1]), int(rng.integers(1, 16))
    tokens, counts = rng.integers(1, 99, total), rng.random(total) < 0.5
    begins = np.isin(np.arange(total), offsets)
    n = min(seq_len, total - 1)
    plain = concat_sequence(tokens[: n + 1], begins[: n + 1], seq_len, cross)
    masked = concat_sequence(tokens[: n + 1], begins[: n + 1], seq_len, cross, counts[: n + 1])
    expected = plain.loss_weights[:n] * counts[1 : n + 1]
    np.testing.assert_array_equal(masked.loss_weights[:n], expected)
    assert not masked.loss_weights[n:].any()
    packing = best_fit(offsets, seq_len)
    for first, last in zip(packing.first, packing.first[1:]):
        spans = [
            slice(s, s + length + 1)
            for s, length in zip(packing.starts[first:last], packing.lengths[first:last])
        ]
        parts = [tokens[span] for span in spans]
        masks = [counts[span] for span in spans]
        made = best_fit_sequence(parts, seq_len, cross, masks)
        plain = best_fit_sequence(parts, seq_len, cross)
        expected = np.concatenate([mask[1:] for mask in masks])
        np.testing.assert_array_equal(made.loss_weights[: len(expected)], expected)
        np.testing.assert_array_equal(made.targets, plain.targets)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("seq_len", [7, 48, 400])
def test_an_epoch_counts_each_answer_once(packing, seq_len, tmp_path):
    """Cut or whole: the targets that count are all tokens of all completions, and their EOS."""
    pairs = draw_pairs(np.random.default_rng(), 60)
    made = pipeline(tmp_path, pairs, packing=packing, seq_len=seq_len)
    counted = []
    for batch in made.heldout_batches(4, 10**6):
        weights = batch["loss_weights"]
        assert set(np.unique(weights)) <= {0.0, 1.0}
        counted += batch["targets"][weights > 0].tolist()
    splits = made.heldout_splits["a"]
    assert splits.answer_tokens == len(counted)
    offsets = splits.document_offsets()
    held = [TOKENIZER.decode(splits.read(a, b)[0]) for a, b in zip(offsets, offsets[1:])]
    answers = [a for q, a in pairs if q + a in held]
    assert len(answers) == len(held) > 0
    expected = [i for a in answers for i in (*a.encode(), TOKENIZER.eos_id)]
    assert sorted(counted) == sorted(expected)


def test_batches_of_answers_depend_on_seed_and_step_alone(tmp_path):
    pairs = draw_pairs(np.random.default_rng(), 60)
    one = pipeline(tmp_path, pairs)
    again = pipeline(tmp_path, pairs)
    for step in (0, 5, 11):
        a, b = one.batch(step), again.batch(step)
        assert all((a[name] == b[name]).all() for name in a)
    batches = one.iterate(5)
    assert (next(batches)["loss_weights"] == one.batch(5)["loss_weights"]).all()
    batches.close()


def test_a_mixture_counts_all_of_its_text_and_the_answers_of_its_prompts(tmp_path):
    pairs = draw_pairs(np.random.default_rng(), 60)
    path = prompts(tmp_path / "a.jsonl", pairs).path
    text = write(tmp_path / "b.jsonl", *({"text": q + a} for q, a in pairs))
    sources = {"a": {"kind": "prompts", "path": path}, "b": {"kind": "jsonl", "path": text}}
    data = DataConfig(sources=sources, seq_len=48, batch_size=4, heldout_fraction=0.3)
    made = open_pipeline(data, seed=0, workdir=tmp_path)
    shares = {}
    for name in sources:
        sequences = made._train[name]
        weights = np.stack([sequences[i].loss_weights for i in range(len(sequences))])
        shares[name] = weights.mean()
    assert shares["a"] < 0.7 < 0.9 < shares["b"]


def test_the_bigram_model_is_fitted_and_scored_on_answers(tmp_path):
    """Where each answer letter follows from the one before it, prompts of noise do not matter."""
    rng = np.random.default_rng()
    letters = "abcdefgh"

    def noise():
        return "".join(rng.choice(list("abcdefgh"), 30)) + "="

    pairs = [(noise(), letters[int(rng.integers(8)) :]) for _ in range(80)]
    made = pipeline(tmp_path, pairs, packing="best_fit")
    result = bigram_bits_per_byte(made, 10**6)
    assert result.tokens == made.heldout_splits["a"].answer_tokens
    first = np.log(8) * made.heldout_splits["a"].documents  # the first letter is free
    assert result.nats_per_token * result.tokens == pytest.approx(first, rel=0.35)


def test_shards_of_answers_have_a_version_of_their_own(tmp_path):
    source = prompts(tmp_path / "a.jsonl", draw_pairs(np.random.default_rng(), 30))
    folder = tokenize(source, TOKENIZER, tmp_path / "t", 0.3, shard_tokens=100)
    opened = open_shards(folder, tokenizer=TOKENIZER)
    assert opened.manifest["version"] == 3
    assert len(opened.manifest["splits"]["train"]["shards"]) > 2
    plain = write(tmp_path / "b.jsonl", {"text": "a"}, {"text": "b"})
    text = read_source({"kind": "jsonl", "path": plain}, "s")
    manifest = open_shards(
        tokenize(text, TOKENIZER, tmp_path / "u", 0.3), tokenizer=TOKENIZER
    ).manifest
    assert manifest["version"] == 2 and "answer_tokens" not in manifest["splits"]["train"]
    assert not list((tmp_path / "u").glob("*.mask"))


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_damaged_masks_are_refused(damage, tmp_path):
    source = prompts(tmp_path / "a.jsonl", draw_pairs(np.random.default_rng(), 30))
    path = tokenize(source, TOKENIZER, tmp_path / "t", 0.3) / "train-00000.mask"
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data[:-1] if damage == "truncated" else data)
    words = {"missing": "is missing", "truncated": "is truncated", "flipped": "is corrupt"}[damage]
    with pytest.raises(DataError, match=rf"train-00000.mask: the shard {words}"):
        open_shards(tmp_path / "t", tokenizer=TOKENIZER)


@pytest.mark.slow
def test_processes_write_the_same_bytes(tmp_path):
    source = read_source({"kind": "chat", "path": write(tmp_path / "c.jsonl", *CHATS)}, "s")
    one = tokenize(source, TOKENIZER, tmp_path / "1", 0.3, 1)
    two = tokenize(source, TOKENIZER, tmp_path / "2", 0.3, 2)
    files = sorted(p.name for p in one.iterdir())
    assert files == sorted(p.name for p in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


CHATS = [
    {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}]}
    for i in range(9)
]
SAID = {"role": "assistant", "content": "a"}
BAD = {
    "no prompt": ("prompts", {"completion": "a"}, "no key 'prompt'; the keys are: completion"),
    "no completion": ("prompts", {"prompt": "a", "x": 1}, "no key 'completion'; .*prompt, x"),
    "empty completion": ("prompts", {"prompt": "a", "completion": ""}, "'completion' is empty"),
    "a number": ("prompts", {"prompt": 3, "completion": "a"}, "'prompt' is int, not text"),
    "no messages": ("chat", {"text": "a"}, "no key 'messages'"),
    "messages of another form": ("chat", {"messages": "a"}, "is no list of messages"),
    "none": ("chat", {"messages": []}, "is no list of messages"),
    "no object": ("chat", {"messages": [SAID, 3]}, "message 2: is a JSON int"),
    "no role": ("chat", {"messages": [{"content": "a"}]}, "message 1: there is no key 'role'"),
    "unknown role": (
        "chat",
        {"messages": [SAID, {"role": "bot", "content": "a"}]},
        "message 2: the role is 'bot'; valid are: system, .*assistant",
    ),
    "no content": (
        "chat",
        {"messages": [{"role": "user"}]},
        "message 1: there is no key 'content'",
    ),
    "null": ("chat", {"messages": [{"role": "user", "content": None}]}, "'content' is null"),
    "empty answer": (
        "chat",
        {"messages": [{"role": "assistant", "content": ""}]},
        "message 1: the assistant's content is empty",
    ),
    "no answer": ("chat", {"messages": [{"role": "user", "content": "a"}]}, "role 'assistant'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_example_is_one_sentence_with_its_line(name, tmp_path):
    kind, entry, words = BAD[name]
    good = {"prompts": {"prompt": "a", "completion": "b"}, "chat": CHATS[0]}[kind]
    source = read_source({"kind": kind, "path": write(tmp_path / "a.jsonl", good, entry)}, "s")
    with pytest.raises(DataError, match=rf"a\.jsonl:2.*{words}") as error:
        list(source.documents())
    assert "\n" not in str(error.value)


def test_keys_can_be_set(tmp_path):
    source = prompts(tmp_path / "a", [("q", "a")], prompt_key="in", completion_key="out")
    (made,) = source.documents()
    assert (made.prompt, made.completion) == ("q", "a")
    with pytest.raises(ConfigError, match="text_key"):
        read_source({"kind": "prompts", "path": "x", "text_key": "a"}, "s")


def test_tokens_are_cached_by_keys_and_template(tmp_path):
    """Another template or another key writes another folder; the same ones find theirs."""
    path = write(tmp_path / "c.jsonl", *CHATS)
    template = tmp_path / "t.jinja"

    def folder(text, **changes):
        template.write_text(text)
        source = {"kind": "chat", "path": path, "template": str(template), **changes}
        data = DataConfig(sources={"a": source}, seq_len=8, batch_size=2, heldout_fraction=0.3)
        made = open_pipeline(data, seed=0, workdir=tmp_path)
        return made.counts()["sources"]["a"]["folder"]

    one = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    two = "{% for m in messages %}{{ m.content }};{% endfor %}"
    plain = folder(one, template=None)
    assert folder(one) == folder(one) != folder(two)
    assert plain not in (folder(one), folder(two))


@settings(max_examples=20, deadline=None)
@given(text=texts.filter(bool))
def test_any_text_can_be_a_prompt_and_a_completion(text, tmp_path_factory):
    (made,) = prompts(tmp_path_factory.mktemp("p") / "a", [(text, text)]).documents()
    assert made.text == text + text
