"""A teacher whose retrieval circuit is known: the map finds its head, and selectors keep its layers."""

import dataclasses

import jax
import numpy as np
import pytest

from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.distill.selection.branches import branches
from hybridlm.distill.selection.budget import Budget
from hybridlm.distill.selection.evaluations import Evaluations, Metric, Search
from hybridlm.distill.selection.gates import train_gates
from hybridlm.distill.selection.registry import SELECTORS
from hybridlm.distill.selection.retrieval import answer_nll, of_prompts
from hybridlm.distill.selection.retrieval_map import retrieval_map
from hybridlm.distill.selection.selection import SelectorSettings
from hybridlm.distill.selection.settings import GateSettings
from hybridlm.distill.transfer import transfer
from hybridlm.models.params import Model
from hybridlm.probes import Head
from kernels_pallas import dispatch
from tests.distill.subjects import opened, with_params
from tests.models.small import model_config
from tests.probes import known

CIRCUIT = (
    0,
    1,
)  # layer 0 copies the token before, layer 1 attends to what followed the query's token


@pytest.fixture(autouse=True)
def reference_forms():
    """Uses the reference forms, which compile fastest."""
    with dispatch.auto_means("reference"):
        yield


@pytest.fixture(scope="module")
def teacher():
    """The known model of two layers, and two more whose mixers add nothing."""
    model, params = known.induction()
    deeper = Model.of(dataclasses.replace(model.config, depth=4))

    def idle(path, x):
        unused = "out" in jax.tree_util.keystr(path) and "norm" not in jax.tree_util.keystr(path)
        return np.concatenate([x, np.zeros_like(x) if unused else x])

    params = {**params, "unit": jax.tree_util.tree_map_with_path(idle, params["unit"])}
    return with_params(deeper, params)


def test_the_map_finds_the_head_of_the_circuit(teacher):
    found = retrieval_map(teacher, 32, samples=4)
    assert found.by == "induction" and found.why == "the teacher has no tokenizer"
    assert found.top[0] == Head(1, 0)
    scores = [layer.induction for layer in found.layers]
    assert scores[1] > 0.5 and max(scores[0], scores[2]) < 0.3
    lost = found.overlap((0, 2), range(4)).lost
    assert "1.0" in lost and found.overlap((0, 1, 2, 3), range(4)).lost == ()


@pytest.mark.slow
def test_the_overlap_counts_heads_of_candidates_against_chance(teacher):
    found = dataclasses.replace(
        retrieval_map(teacher, 32, samples=2), top=(Head(1, 0), Head(3, 1), Head(2, 0))
    )
    overlap = found.overlap(kept=(1,), candidates=(0, 1, 3))
    assert (overlap.heads, overlap.kept, overlap.lost) == (2, 1, ("3.1",))
    assert overlap.chance == 2 / 3
    assert str(overlap).startswith("keeps 1 of the teacher's top 2 induction heads (0.7 by chance")


@pytest.mark.slow
def test_needles_are_used_where_there_is_a_tokenizer():
    config = model_config("full", depth=2, vocab_size=258)
    model = dataclasses.replace(opened(config), tokenizer=ByteTokenizer())
    found = retrieval_map(model, 200, samples=4)
    assert found.by == "retrieval" and found.why is None
    assert all(0 < layer.mass < 1 and layer.retrieval >= 0 for layer in found.layers)


@pytest.mark.slow
def test_selectors_keep_the_circuit_whose_layers_are_of_no_use_alone(teacher):
    """Each layer of the circuit needs the other: restoring one of them alone changes little."""
    both = branches(teacher, transfer(teacher, dict(kind="attention", window=1)).student)
    run = jax.jit(lambda params, batch: answer_nll(both.model, params, batch, np.float32))

    def batch(seed):
        return of_prompts(known.prompts(16, seed), 20)

    def measure(kept, metric):
        nll_B, tokens_B = run(both.with_kept(kept), batch(1))
        return (float(nll_B.sum() / tokens_B.sum()),)

    def gates(share):
        settings = GateSettings(gate_steps=80, gate_lr=0.2)
        return train_gates(both, lambda step: batch(100 + step), settings, share), ()

    metrics = {name: Metric(name, higher=False) for name in ("nll", "recall")}
    search = Search(4, both.layers, Evaluations(measure), metrics, gates)
    settings, nll = SelectorSettings(metric="nll", recall="recall"), search.evaluate
    assert nll(frozenset(CIRCUIT), "nll")[0] < 0.5 * nll(frozenset(), "nll")[0]
    for method in ("exhaustive", "greedy", "gates", "recall"):
        budget = Budget.of_layers(both.layers, 2)
        found = SELECTORS[method].select(search, budget, settings)
        assert found.kept == CIRCUIT, (method, found)
