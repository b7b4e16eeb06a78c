"""JSON files of a run whose values are not those that were written: one sentence with the path."""

import json

import pytest

from hybridlm.errors import RunError
from hybridlm.runs import json_files, opened, source, workdir
from hybridlm.runs.stored import open_checkpoint

READERS = {
    "config.json": (json_files.read_settings, workdir.CONFIG),
    "environment.json": (lambda path: workdir.run_id(path.parent), workdir.ENVIRONMENT),
    "model.json, its lineage": (lambda path: opened.lineage_of(path.parent), opened.MODEL),
    "model.json, a source": (lambda path: source.open_source(path.parent), opened.MODEL),
    "model.json, its arrays": (lambda path: open_checkpoint(path.parent), opened.MODEL),
    "model.json, a model": (lambda path: opened.open_model(path.parent), opened.MODEL),
}


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{", "", "[" * 100_000])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_holds_no_object_is_damaged(reader, text, tmp_path):
    read, name = READERS[reader]
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=f"{name} is damaged: ") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["model", "data", "train", "optimizer", "tokenizer", "from"])
@pytest.mark.parametrize("value", ["x", 3, [1], True])
def test_a_part_of_the_settings_that_is_no_object_is_damaged(key, value, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({key: value}))
    with pytest.raises(RunError, match=f"model.json is damaged: its {key} is no JSON object"):
        source.open_source(tmp_path)


def test_a_part_of_the_settings_may_be_missing_or_null(tmp_path):
    for settings in ({}, {"from": None, "train": {}, "seed": 3}):
        (tmp_path / "model.json").write_text(json.dumps(settings))
        assert json_files.read_settings(tmp_path / "model.json") == settings


@pytest.mark.parametrize("lineage", [3, "x", {"a": 1}, [3], ["x"], [{}]])
def test_a_lineage_that_is_no_list_of_origins_is_damaged(lineage, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"lineage": lineage}))
    with pytest.raises(RunError, match="model.json is damaged: its lineage"):
        opened.lineage_of(tmp_path)
