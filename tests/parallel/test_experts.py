"""Experts split over devices: outputs, losses and gradients equal those of one device."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.parallel.expert_exchange import Exchange
from tests.parallel.programs import run_program


def run(root, *arguments):
    return json.loads(run_program(root, "experts_program.py", *arguments))


def test_a_split_mixture_equals_one_device(root):
    found = run(root, "few", 1)["mixtures"]
    assert set(found) == {"expert 8", "fsdp 2, tensor 2, expert 2"}
    assert max(found.values()) < 1e-10, found


def test_it_would_differ_if_rows_were_left_after_the_first_round(root):
    found = run(root, "few", 1, "fault")["mixtures"]
    assert min(found.values()) > 1e-3, found


@pytest.mark.slow
def test_any_mixture_on_any_mesh_and_training_equal_one_device(root):
    found = run(root, "all", 2)
    assert {n.rpartition("expert ")[2] for n in found["mixtures"]} >= {"2", "4", "8"}
    assert max(found["mixtures"].values()) < 1e-10, found
    models = found["models"]
    expected, whole = models.pop("one device")
    assert whole == [2, 8, 16, 16]  # (repeats, experts, width, hidden)
    for losses, _ in models.values():
        np.testing.assert_allclose(losses, expected, rtol=2e-5)
    assert models["data 2, expert 4"][1] == [2, 2, 16, 16]
    assert models["fsdp 2, tensor 2, expert 2"][1] == [2, 4, 8, 8]


@given(
    tokens=st.integers(1, 5000),
    top_k=st.integers(1, 8),
    own=st.integers(1, 16),
    shards=st.sampled_from([2, 4, 8]),
)
def test_a_round_has_room_for_an_even_load_and_never_more_than_all_rows(tokens, top_k, own, shards):
    top_k = min(top_k, own * shards)
    exchange = Exchange(run=None, own=own, shards=shards, weigh_inputs=False)
    capacity = exchange.capacity(tokens, top_k)
    all_rows = tokens * min(top_k, own)
    assert min(all_rows, tokens * top_k / shards) <= capacity <= all_rows
