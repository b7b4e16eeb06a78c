"""The distance of query and key weights, on hand-made checkpoints."""

import copy
import math

import jax
import known
import numpy as np
import pytest
import small

from hybridlm import probes
from hybridlm.models.params import Model
from hybridlm.probes import Head


def test_distances_are_exact_on_hand_made_checkpoints():
    """One head of the repeated unit differs; grouped query heads share their key."""
    config = small.model_config("swa rec", depth=4)
    model, rng = Model.of(config), np.random.default_rng(1)
    final = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(p.dtype), model.abstract)
    mixer = final["unit"]["0_swa"]["mixer"]
    q, k = (np.array(mixer[name]["kernel"]) for name in "qk")
    size = 8  # of a head: 4 query heads and 2 key heads at width 32
    q0, k0 = q.copy(), k.copy()
    q0[1, 3, 2 * size] += 3.0  # layer 2, head 2
    q0[1, 4, 2 * size + 1] += 4.0
    k0[1, 0, size] += 2.0  # its key head 1, which head 3 reads too
    early = copy.deepcopy(final)
    early["unit"]["0_swa"]["mixer"]["q"]["kernel"] = q0
    early["unit"]["0_swa"]["mixer"]["k"]["kernel"] = k0
    table = probes.qk_distance(model, [(10, early), (20, final)], final)
    assert len(table) == 2 * 8
    found = {(e.step, e.layer, e.head): e for e in table}
    assert all(e.distance == e.relative == 0 for e in table if e.step == 20 or e.layer == 0)
    q_norm = np.linalg.norm(q[1][:, 2 * size : 3 * size])
    k_norm = np.linalg.norm(k[1][:, size:])
    assert found[10, 2, 2].distance == pytest.approx(5 + 2, rel=1e-5)
    assert found[10, 2, 2].relative == pytest.approx(5 / q_norm + 2 / k_norm, rel=1e-5)
    assert found[10, 2, 3].distance == pytest.approx(2, rel=1e-5)
    assert found[10, 2, 0].distance == found[10, 2, 1].distance == 0
    only = probes.qk_distance(model, [(10, early)], final, [Head(2, 3)])
    assert only.entries == (found[10, 2, 3],)


def test_each_weight_counts_for_its_heads():
    """MLA's shared key part counts for all heads; branches count separately."""
    model = Model.of(small.model_config("mla nested nha moba", depth=5, suffix="mla_nope"))
    rng = np.random.default_rng(0)

    final = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(p.dtype), model.abstract)
    moved = copy.deepcopy(final)
    mla = moved["unit"]["0_mla"]["mixer"]
    mla["kv_down"]["kernel"][0, 0, 10] += (
        1.0  # the first column of the shared key part, after the rank of 10
    )
    mla["kv_down"]["kernel"][0, 0, 9] += 9.0  # a column of the latent: belongs to no head
    mla["kv_up"]["kernel"][0, 0, 13] += 2.0  # head 1's first key column (6 keys and 7 values each)
    mla["kv_up"]["kernel"][0, 0, 6] += 9.0  # head 0's first value
    nested = moved["unit"]["1_nested"]["mixer"]["branches"]
    nested["pair"]["branches"]["swa"]["q"]["kernel"][0, 0, 16] += 4.0  # its second head
    table = probes.qk_distance(model, [(1, moved)], final)
    far = {(e.layer, e.head): e.distance for e in table if e.distance > 0}
    want = {(0, 0): 1, (0, 1): math.sqrt(5), (0, 2): 1, (1, 5): 4}
    assert far == {head: pytest.approx(value, rel=1e-5) for head, value in want.items()}
    assert len(table) == 3 + 6 + 4 + 4 + 2
    model, params = known.induction()  # head 1.1 has weights of 0: no relative distance
    (_, _, uniform) = probes.qk_distance(model, [(1, params)], params)
    assert math.isnan(uniform.relative) and uniform.distance == 0
