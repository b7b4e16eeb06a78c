"""Tokenizing: the same files from any number of processes, a stable split, no partial output."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from data_helpers import BYTES, draw_texts, write_jsonl, write_shards

from hybridlm.data import open_shards, open_tokenizer, tokenization, tokenize, train_bpe
from hybridlm.data.settings import TokenizerConfig
from hybridlm.data.tokenization import Splitter, text_digest
from hybridlm.errors import DataError, WriteError

TOKENIZER = open_tokenizer(BYTES)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(pathlib.Path(folder).iterdir())}


@pytest.mark.parametrize("kind", ["bytes", "hf"])
def test_one_and_three_processes_write_the_same_bytes(kind, tmp_path, monkeypatch):
    documents = draw_texts(np.random.default_rng(), 150)
    monkeypatch.setattr(tokenization, "_CHUNK_CHARS", 2000)  # many chunks
    tokenizer = TOKENIZER
    if kind == "hf":
        tokenizer = train_bpe(documents, 290, tmp_path / "tokenizer.json")
    source = write_jsonl(tmp_path / "a.jsonl", documents)
    for processes in (1, 3):
        tokenize(source, tokenizer, tmp_path / str(processes), 0.2, processes, shard_tokens=2000)
    one, three = contents(tmp_path / "1"), contents(tmp_path / "3")
    assert len(one) > 6
    assert one == three


def test_reading_is_at_most_two_chunks_per_process_ahead(tmp_path, monkeypatch):
    """Text is read at most two chunks per process ahead of what is written."""
    from hybridlm.data import Document

    read, ahead = [], []

    def chunks():
        for i in range(40):
            read.append(i)
            yield [Document(str(i), "text")]

    for written, _ in enumerate(tokenization._encode(chunks(), TOKENIZER, 2)):
        ahead.append(len(read) - written)
    assert len(ahead) == 40
    assert max(ahead) <= 4, f"{max(ahead)} chunks"


def test_the_split_is_unchanged_when_documents_are_added(tmp_path):
    documents = draw_texts(np.random.default_rng(), 200)
    heldout = {}
    for count in (2, 3, 50, 200):
        folder = write_shards(tmp_path / str(count) / "s", documents[:count], 0.25)
        shards = open_shards(folder, tokenizer=TOKENIZER)
        assert shards.train.documents and shards.heldout.documents
        heldout[count] = texts_of(shards.heldout)
    for fewer, more in ((2, 3), (3, 50), (50, 200)):
        assert heldout[more][: len(heldout[fewer])] == heldout[fewer]


def test_the_held_out_share_is_the_configured_fraction():
    rng = np.random.default_rng()
    texts = [f"{rng.integers(2**60)}:{i}".encode() for i in range(20_000)]
    splitter = Splitter(0.05)
    share = np.mean([splitter.split_of(text_digest(text)) == "heldout" for text in texts])
    assert abs(share - 0.05) < 0.01, f"{share:.4f}"


def test_copies_of_a_held_out_text_are_not_trained_on(tmp_path):
    """Wherever copies occur, the splits share no text and neither is empty."""
    rng = np.random.default_rng()
    for trial in range(20):
        distinct = [f"text {i}" for i in range(rng.integers(2, 12))]
        texts = [*distinct, *rng.choice(distinct, 30)]
        rng.shuffle(texts)
        folder = write_shards(tmp_path / str(trial) / "s", texts, 0.4)
        shards = open_shards(folder, tokenizer=TOKENIZER)
        train, heldout = (set(texts_of(split)) for split in (shards.train, shards.heldout))
        assert train and heldout and not train & heldout
        assert train | heldout == set(texts)


def texts_of(split):
    offsets = split.document_offsets().tolist()
    return [TOKENIZER.decode(split.read(a, b)[0]) for a, b in zip(offsets, offsets[1:])]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_document_leaves_no_folder(processes, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ["good"] * 50 + [""])
    with pytest.raises(DataError, match=":51: the document has no text"):
        tokenize(source, TOKENIZER, tmp_path / "out", 0.1, processes)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_tokenizer_file_that_changes_during_use_is_refused(tmp_path):
    documents = draw_texts(np.random.default_rng(), 80)
    path = tmp_path / "tokenizer.json"
    tokenizer = train_bpe(documents, 290, path)
    path.unlink()
    train_bpe(documents, 280, path)
    source = write_jsonl(tmp_path / "a.jsonl", documents)
    with pytest.raises(DataError, match="the file changed while it was in use"):
        tokenize(source, tokenizer, tmp_path / "out", 0.1, 2)


def test_pool_processes_exit_when_the_parent_is_killed(tmp_path):
    """kill -9 ends only the parent; its pool processes must not wait forever."""
    script = tmp_path / "tokenizes.py"
    script.write_text(
        "import itertools, multiprocessing, time\n"
        "from hybridlm.data import Document, tokenization\n"
        "from hybridlm.data.tokenizers import ByteTokenizer\n"
        "if __name__ == '__main__':\n"
        "    chunks = itertools.repeat([Document('a', 'text')])\n"
        "    encoded = tokenization._encode(chunks, ByteTokenizer(), 2)\n"
        "    next(encoded)\n"
        "    print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = str(pathlib.Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert children and all(map(running, children))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while any(map(running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, children))


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = pathlib.Path(f"/proc/{pid}/stat")  # an orphan may remain as a zombie
    return not (stat.exists() and stat.read_text().rpartition(") ")[2].startswith("Z"))


def test_processes_must_be_positive(tmp_path):
    with pytest.raises(DataError, match="processes is 0"):
        tokenize(write_jsonl(tmp_path / "a.jsonl", ["a"]), TOKENIZER, tmp_path / "o", 0.1, 0)


@pytest.mark.parametrize("fraction", [0, 1, -1, 2, float("nan")])
def test_the_held_out_fraction_lies_between_0_and_1(tmp_path, fraction):
    with pytest.raises(DataError, match="heldout_fraction is .*must lie between 0 and 1"):
        tokenize(write_jsonl(tmp_path / "a.jsonl", ["a"]), TOKENIZER, tmp_path / "o", fraction)


def test_an_unwritable_path_is_named(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ["a"])
    folder = tmp_path / "a.jsonl" / "out"
    with pytest.raises(WriteError, match=f"{folder} cannot be written"):
        tokenize(source, TOKENIZER, folder, 0.1)
    with pytest.raises(WriteError, match="cannot be written"):
        train_bpe(["some text"], 258, tmp_path / "a.jsonl" / "tokenizer.json")


def test_unknown_tokens_are_counted(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(draw_texts(np.random.default_rng(), 300)),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = open_tokenizer(TokenizerConfig("sentencepiece", str(tmp_path / "sp.model")))
    source = write_jsonl(tmp_path / "a.jsonl", ["the union Ω", "a state"])
    tokenize(source, tokenizer, tmp_path / "out", 0.1)
    shards = open_shards(tmp_path / "out", tokenizer=tokenizer)
    assert (shards.train.unknown_tokens, shards.heldout.unknown_tokens) == (1, 0)
    assert shards.train.bytes == len("the union Ω".encode())
