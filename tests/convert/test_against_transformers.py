"""A model of transformers gives the same logits here; import and export are inverse to each other.

The fixtures are made by make_fixtures.py in this folder; a fixture of another seed is read with
`--checkpoints DIR`.
"""

import fnmatch
import json

import numpy as np

from hybridlm import convert
from hybridlm.convert.exporting import fit
from hybridlm.convert.safetensors_folder import SafetensorsFolder

TOLERANCE = 1e-4  # of the largest logit; both run in float32


def assert_same(ours, theirs):
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference < TOLERANCE, f"logits differ by {difference:.1e} of the largest"


def test_the_logits_are_those_of_transformers(model):
    assert_same(model.forward[0], model.logits[0])


def test_packed_documents_have_the_logits_of_separate_ones(model):
    assert_same(model.forward[1], model.logits[0])
    assert_same(model.forward[2], model.logits[1])


def test_prefill_and_one_token_decoding_give_the_same_logits(decoding_model):
    assert_same(decoding_model.decoded, decoding_model.logits[0])


def test_an_export_has_the_tensors_of_the_import(model, tmp_path):
    """Name for name, bit for bit."""
    checkpoint = model.checkpoint
    config = json.loads((model.folder / "config.json").read_text())
    convert.export(
        checkpoint.model,
        model.params,
        tmp_path,
        preferred=checkpoint.family.architecture,
        length=checkpoint.length,
        dtype=config["dtype"],
        shard_bytes=30_000,
    )
    before, after = SafetensorsFolder.open(model.folder), SafetensorsFolder.open(tmp_path)
    if "text_config" in config:  # the text model alone is exported
        before = checkpoint.tensors
    if checkpoint.family.wrapper is not None:
        after = convert.open_checkpoint(tmp_path).tensors
    optional = checkpoint.family.optional
    held = {
        name: shape
        for name, shape in before.shapes.items()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in optional)
    }
    assert held == after.shapes
    for name in held:
        assert before.read(name).dtype == after.read(name).dtype
        np.testing.assert_array_equal(before.read(name), after.read(name), err_msg=name)


def test_the_exported_config_is_the_one_that_transformers_loaded(model):
    """make_fixtures.py loaded it with our export, and compared logits and tensors."""
    checkpoint, loaded = model.checkpoint, model.exported
    family = checkpoint.family.architecture
    found = fit(checkpoint.model.config, preferred=family, length=checkpoint.length)
    written = loaded["config.json"]
    written |= written.get("text_config", {})
    keys = {k: v for k, v in written.items() if k in found.keys}
    assert json.loads(json.dumps(found.keys)) == keys
    assert loaded["class"] == family
    assert loaded["tensors that differ"] == []
    assert loaded["largest difference of logits, of the largest logit"] < 1e-6


def test_every_family_has_a_fixture(request, families):
    folder = request.path.parent / "fixtures"
    configs = [json.loads((p / "config.json").read_text()) for p in folder.iterdir()]
    assert {name for config in configs for name in config["architectures"]} >= families
