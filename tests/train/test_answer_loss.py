"""Training on answers: the loss is that of each example alone, and nothing else has a gradient."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm import config as configs
from hybridlm.data import open_pipeline
from hybridlm.evals.perplexity import evaluate, make_eval_step
from hybridlm.models.loss import loss_settings, summed_cross_entropy
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model
from hybridlm.train.optimizer import make_optimizer
from hybridlm.train.state import init_state
from hybridlm.train.step import make_train_step

WORDS = "the union of states shall be a hybrid and its windows are short".split()


def draw_pairs(rng, count):
    def words():
        return " ".join(rng.choice(WORDS, rng.integers(1, 6)))

    return [(f"{words()} {i}?", f" {words()} {i}") for i in range(count)]


@pytest.fixture(scope="module")
def pairs():
    return draw_pairs(np.random.default_rng(), 40)


@pytest.fixture(scope="module")
def made(pairs, tmp_path_factory):
    """(model, state, training step, opener of the data in a packing, evaluation step)."""
    folder = tmp_path_factory.mktemp("answers")
    lines = (json.dumps({"prompt": q, "completion": a}) for q, a in pairs)
    (folder / "a.jsonl").write_text("\n".join(lines))
    source = dict(kind="prompts", path=str(folder / "a.jsonl"))

    def settings(packing="best_fit", seq_len=160):
        return configs.read(
            dict(
                model=dict(
                    width=16,
                    depth=1,
                    pattern="full",
                    mlp=dict(hidden=24),
                    vocab_size=264,
                    mixers=dict(full=dict(kind="attention", heads=2)),
                ),
                data=dict(
                    sources=dict(a=source),
                    seq_len=seq_len,
                    batch_size=3,
                    packing=packing,
                    heldout_fraction=0.4,
                ),
                optimizer=dict(lr=0.01, warmup_steps=0),
                train=dict(steps=50),
            )
        )

    config = settings()
    model = Model.of(config.model)
    optimizer = make_optimizer(config.optimizer, model.decay, model.muon)
    state = init_state(model, optimizer, jax.random.key(int(np.random.default_rng().integers(99))))

    def data(packing="best_fit", seq_len=160):
        return open_pipeline(settings(packing, seq_len).data, seed=0, workdir=folder)

    sizes = np.zeros(264, np.int32)
    sizes[:258] = data().tokenizer.token_bytes()
    step = jax.jit(
        make_train_step(model, optimizer, config.train, config.optimizer, sizes, jnp.float32)
    )
    evaluation = jax.jit(make_eval_step(model, sizes, jnp.float32))
    return model, state, step, data, evaluation


@pytest.fixture(scope="module")
def alone(made, pairs):
    """The summed nats of each answer, by its text, from the example alone, without packing."""
    model, state, _, data, _ = made
    tokenizer = data().tokenizer

    @jax.jit
    def log_probs(tokens_T):
        context = SequenceContext(
            jnp.ones((1, 128), jnp.int32), jnp.arange(128, dtype=jnp.int32)[None]
        )
        return jax.nn.log_softmax(model.bind(state["params"])(tokens_T[None], context)[0])

    found = {}
    for prompt, answer in pairs:
        whole = [tokenizer.bos_id, *(prompt + answer).encode(), tokenizer.eos_id]
        table = np.asarray(log_probs(jnp.asarray(whole + [0] * (128 - len(whole)))), np.float64)
        first = len(whole) - len(answer.encode()) - 1
        found[answer] = -sum(table[at - 1, whole[at]] for at in range(first, len(whole)))
    return found


def answers_of(batch, tokenizer):
    """The answers in a batch of whole examples, from its targets that count."""
    flat = batch["targets"][batch["loss_weights"] > 0].tolist()
    *texts, rest = bytes(i if i < 256 else 0 for i in flat).split(b"\0")
    assert not rest
    return [text.decode() for text in texts]


def test_the_loss_of_a_packed_batch_is_that_of_its_examples_alone(made, alone):
    """Computed by hand: minus the log of each answer's probability, over the number of tokens."""
    _, state, step, data, _ = made
    pipeline = data()
    for number in range(3):
        batch = pipeline.batch(number)
        answers = answers_of(batch, pipeline.tokenizer)
        assert len(answers) > 3
        _, metrics = step(state, {name: jnp.asarray(x)[None] for name, x in batch.items()})
        targets = sum(len(a.encode()) + 1 for a in answers)
        assert float(metrics["targets"]) == targets
        assert float(metrics["loss"]) == pytest.approx(
            sum(alone[a] for a in answers) / targets, rel=1e-5
        )
        size = sum(len(a.encode()) for a in answers)
        assert float(metrics["bits_per_byte"]) == pytest.approx(
            sum(alone[a] for a in answers) / size / math.log(2), rel=1e-5
        )


def test_the_heldout_loss_counts_answers_alone(made, alone, pairs):
    _, state, _, data, evaluation = made
    pipeline = data()
    split = pipeline.heldout_splits["a"]
    offsets = split.document_offsets()
    held = [pipeline.tokenizer.decode(split.read(a, b)[0]) for a, b in zip(offsets, offsets[1:])]
    answers = [a for q, a in pairs if q + a in held]
    found = evaluate(evaluation, state["params"], pipeline.heldout_batches(3, 10**6))
    assert found["targets"] == sum(len(a.encode()) + 1 for a in answers)
    nats = sum(alone[a] for a in answers)
    assert found["loss"] == pytest.approx(nats / found["targets"], rel=1e-5)
    size = sum(len(a.encode()) for a in answers)
    assert found["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_what_does_not_count_has_a_gradient_of_exactly_zero(packing, made):
    """In the hidden state that makes a logit, for prompts, padding and ends of documents."""
    model, state, _, data, _ = made
    batch = data(packing, 48).batch(0)
    module = model.bind(state["params"])
    context = SequenceContext(batch["segment_ids"], batch["positions"])
    hidden_BTD = module.hidden(batch["tokens"], context, dtype=jnp.float32)

    @jax.jit
    def total(hidden_BTD):
        head_DV, targets_BT = module.head_kernel(), jnp.asarray(batch["targets"])
        weights_BT = jnp.asarray(batch["loss_weights"])
        settings = loss_settings(model.config)
        return summed_cross_entropy(hidden_BTD, head_DV, targets_BT, weights_BT, settings)[0]

    gradient_BTD = jax.grad(total)(hidden_BTD)
    has_gradient_BT = np.abs(np.asarray(gradient_BTD)).sum(-1) > 0
    np.testing.assert_array_equal(has_gradient_BT, batch["loss_weights"] > 0)
    assert 0 < has_gradient_BT.mean() < 1


def test_a_batch_without_targets_changes_no_gradient_into_nan(made):
    """A long prompt may fill a sequence, or every sequence of a batch."""
    _, state, step, data, evaluation = made
    batch = {name: np.asarray(x)[None] for name, x in data().batch(0).items()}
    batch["loss_weights"] = np.zeros_like(batch["loss_weights"])
    after, metrics = step(state, batch)
    assert float(metrics["loss"]) == 0 and float(metrics["grad_norm"]) == 0
    assert float(metrics["bits_per_byte"]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after["params"]))
    batches = [{name: x[0] for name, x in batch.items()}]
    found = evaluate(evaluation, state["params"], batches)
    assert found == {"loss": 0, "bits_per_byte": 0, "targets": 0, "by_position": []}
