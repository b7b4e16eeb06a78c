"""`hybridlm train` takes sources from buckets."""

import numpy as np

from hybridlm.data import open_pipeline
from hybridlm.data.settings import DataConfig
from hybridlm.runs import metrics
from hybridlm.storage import objects
from tests.train import recurrent


def test_the_command_trains_on_the_sources_of_a_bucket(bucket, command, tmp_path, monkeypatch):
    """Text, and token ids with their own held-out documents: those of the files that were uploaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here = tmp_path / "here"
    here.mkdir()
    recurrent.write_text(here)
    ids = np.random.default_rng().integers(0, 200, 4000).astype("<u2")
    ids[::40] = 257  # ends a document
    ids[:3000].tofile(here / "train.bin")
    ids[3000:].tofile(here / "val.bin")
    for path in here.iterdir():
        objects.write(f"{bucket}/data/{path.name}", path.read_bytes())

    def settings(root):
        flat = dict(kind="flat", path=f"{root}/train.bin", heldout_path=f"{root}/val.bin")
        sources = dict(a=dict(kind="jsonl", path=f"{root}/*.jsonl"), b=flat)
        return recurrent.settings_of(tmp_path, data=dict(sources=sources), train=dict(steps=2))

    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"def get_config():\n    return {settings(f'{bucket}/data')!r}\n")
    words = ["--config", recipe, "--workdir", tmp_path / "run", "--config.sample.tokens=0"]
    code, _, err = command("train", *words)
    assert code == 0, err
    records = metrics.read(tmp_path / "run" / metrics.FILE)
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2]
    (read,) = [r["data"]["sources"] for r in records if r["kind"] == "run"]
    wanted = open_pipeline(DataConfig(**settings(here)["data"]), seed=0, workdir=tmp_path / "own")
    for name, source in wanted.counts()["sources"].items():
        assert read[name]["sha256"] == source["sha256"], name

    objects.delete(f"{bucket}/data/val.bin")
    code, _, err = command("train", *words[:2], "--workdir", tmp_path / "other")
    missing = f"source {bucket}/data/val.bin: there is no such file or folder"
    assert (code, err) == (2, f"hybridlm: data.sources.b: {missing}\n")
    assert not (tmp_path / "other").exists()
