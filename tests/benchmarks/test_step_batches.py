"""The batches that the benchmarks time a compiled step on are those that it was compiled for."""

import argparse
import importlib

import jax
import numpy as np
import pytest

from benchmarks.gpu_visit import steps
from hybridlm import config as configs
from hybridlm.parallel import mesh as meshes
from hybridlm.train import setup


def shapes(batch):
    return jax.tree.map(lambda x: (x.shape, x.dtype), batch)


@pytest.mark.parametrize("name", steps.MIXERS)
def test_a_visits_batch_is_the_steps(name):
    config, _ = setup.resolve(configs.read(steps.settings(steps.MIXERS[name], smoke=True)))
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    found = steps.random_batch(config, mesh)
    assert shapes(found) == shapes(setup.abstract_batch(config, mesh))


def test_a_batch_beside_other_libraries_is_the_steps(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks" / "peers")
    worker = importlib.import_module("hybridlm_worker")
    options = argparse.Namespace(seed=0, steps=3, warmup=1, short=False)
    config, _ = setup.resolve(configs.read(worker.settings(options)))
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    want = shapes(setup.abstract_batch(config, mesh))
    tokens = np.ones((config.data.batch_size, config.data.seq_len + 1), np.int32)
    for layout in (worker.one_document, worker.Packed(0)):
        assert shapes(worker.batches(config, mesh, layout)(tokens)) == want
