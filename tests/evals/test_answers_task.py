"""The answers task: which answers it asks for, and that it counts what greedy decoding gives."""

import json

import numpy as np
import pytest

from hybridlm import config as configs
from hybridlm.data import open_shards, open_tokenizer, tokenize
from hybridlm.data.settings import DataConfig, TokenizerConfig
from hybridlm.data.sources import read_source
from hybridlm.errors import UserError
from hybridlm.evals.answers import ANSWERS, turns
from hybridlm.evals.sample import Sample
from hybridlm.evals.scoring import complete
from hybridlm.evals.settings import EvalSettings
from hybridlm.runs import OpenedModel, open_model
from hybridlm.train.loop import train

TOKENIZER = open_tokenizer(TokenizerConfig())


def chats(path, count):
    """Conversations of one to three turns; a turn's answer is its question in capitals."""
    rng = np.random.default_rng()
    said = [
        ["".join(rng.choice(list("abcdefg"), 9)) for _ in range(n % 3 + 1)] for n in range(count)
    ]
    lines = [
        {
            "messages": [
                {"role": role, "content": text if role == "user" else text.upper()}
                for text in texts
                for role in ("user", "assistant")
            ]
        }
        for texts in said
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return {"kind": "chat", "path": str(path)}


def test_every_turn_is_asked_after_the_true_text_before_it(tmp_path):
    source = read_source(chats(tmp_path / "a.jsonl", 30), "s")
    split = open_shards(
        tokenize(source, TOKENIZER, tmp_path / "t", 0.4), tokenizer=TOKENIZER
    ).heldout
    found = list(turns(split, split.loss_mask))
    assert sum(len(turn.answer) for turn in found) == split.answer_tokens
    for prompt, answer in found:
        assert prompt[0] == TOKENIZER.bos_id and answer[-1] == TOKENIZER.eos_id
        *_, question, head = TOKENIZER.decode(prompt).replace("assistant", "user").split("user\n")
        assert (TOKENIZER.decode(answer), head) == (question.upper(), "")


def opened_on(source, tmp_path):
    data = DataConfig(sources={"a": source}, seq_len=32, batch_size=2, heldout_fraction=0.4)
    return OpenedModel(tmp_path, None, None, TOKENIZER, 1, {}, data)  # `prepare` runs no model


def asked(length, samples=9):
    return EvalSettings(tasks=("answers",), lengths=(length,), samples=samples)


def test_what_does_not_fit_is_counted_and_a_run_without_answers_refused(tmp_path):
    opened = opened_on(chats(tmp_path / "a.jsonl", 30), tmp_path)
    whole, none = ANSWERS.prepare(opened, asked(256))[256]
    some, left_out = ANSWERS.prepare(opened, asked(48))[48]
    assert (len(whole), none) == (9, 0) and left_out == 9 - len(some) > 0
    with pytest.raises(UserError, match="no answer fits 8 tokens"):
        ANSWERS.prepare(opened, asked(8))
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n' * 20)
    text = {"kind": "jsonl", "path": str(tmp_path / "b.jsonl")}
    with pytest.raises(UserError, match='kind "prompts" or "chat"'):
        ANSWERS.prepare(opened_on(text, tmp_path), asked(48))


@pytest.mark.slow
def test_a_run_learns_answers_and_the_task_counts_what_decoding_gives(tmp_path):
    """A choice of two answers by the prompt's first letter, after noise; the noise is not learned."""
    rng = np.random.default_rng()

    def noise():
        return "".join(rng.choice(list("abcdefgh"), 6))

    texts = [(k, noise() + noise()) for k in "xy" for _ in range(150)]
    lines = [
        {"prompt": f"{k}{text} {k}", "completion": {"x": "yes", "y": "no"}[k]} for k, text in texts
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = configs.read(
        dict(
            model=dict(
                width=32,
                depth=2,
                pattern="full",
                mlp=dict(hidden=48),
                mixers=dict(full=dict(kind="attention", heads=2)),
            ),
            data=dict(
                sources=dict(a=dict(kind="prompts", path=str(tmp_path / "a.jsonl"))),
                seq_len=64,
                batch_size=4,
                packing="best_fit",
                heldout_fraction=0.2,
            ),
            optimizer=dict(lr=0.01, warmup_steps=5),
            train=dict(steps=60, eval_every=60, checkpoint_every=60, tensorboard=False),
        )
    )
    assert train(config, tmp_path / "run") == 0
    opened = open_model(tmp_path / "run")
    settings = asked(64, samples=30)
    prepared = ANSWERS.prepare(opened, settings)
    record = ANSWERS.run(opened, 64, settings, prepared)
    assert record["accuracy"] == 1.0 and record["samples"] == 30
    prompts = [turn.prompt for turn in prepared[64][0]]
    samples = [Sample("t", 64, 0, 0, "", "", (), (), p, (), (), 8) for p in prompts]
    made = complete(opened.model, opened.params, TOKENIZER, samples, batch=8)
    assert [[text] for text in made] == [answer["references"] for answer in record["answers"]]
