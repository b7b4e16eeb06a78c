"""A byte tokenizer and a small BPE trained on the bundled text."""

import pytest

from hybridlm.data import train_bpe
from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.evals import haystack


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    """The tokenizers "bytes" and "bpe"; BPE tokens may span two parts of a prompt."""
    texts = [a.text for a in haystack.addresses()[:12]]
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    return {"bytes": ByteTokenizer(), "bpe": train_bpe(texts, 1000, path)}
