"""The registry of sources: configs of all versions read alike, and mistakes get one sentence."""

import hashlib
import json
import re

import pytest
from data_helpers import BYTES, make_pipeline

from hybridlm.commands.main import main
from hybridlm.data import open_tokenizer
from hybridlm.data.settings import DataConfig
from hybridlm.data.shards import describe_tokenizer
from hybridlm.data.sources import KINDS, JsonLines, TextSource
from hybridlm.errors import ConfigError
from hybridlm.settings.plain import to_dict

DATA = dict(seq_len=8, batch_size=1)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "arrayrecord", "tokens"])
def test_a_config_of_an_older_version_is_read(kind):
    """Older versions wrote the same four keys for every kind."""
    old = dict(kind=kind, path="a", text_key="text", weight=2.0)
    source = DataConfig(sources={"a": old}, **DATA).sources["a"]
    assert (source.kind_name, source.path, source.weight) == (kind, "a", 2.0)
    assert type(source) is KINDS[kind]
    assert old.items() >= {k: v for k, v in to_dict(source).items() if k in old}.items()


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_written_as_they_are_read(kind):
    data = DataConfig(sources={"a": dict(kind=kind, path="a")}, **DATA)
    assert DataConfig(**json.loads(json.dumps(to_dict(data)))).sources == data.sources


def test_the_name_of_a_token_folder_is_a_hash_of_what_the_tokens_depend_on(tmp_path):
    """The names of older versions, or their runs would tokenize again and be refused."""
    make_pipeline(tmp_path, {"a": ["one text", "another"] * 9}, seq_len=8)
    content = (tmp_path / "a.jsonl").read_bytes()
    file = {"bytes": len(content), "name": "a.jsonl"}
    file["sha256"] = hashlib.sha256(content).hexdigest()
    expected = {
        "heldout_fraction": 0.3,
        "source": {"files": [file], "kind": "jsonl", "text_key": "text"},
        "tokenizer": describe_tokenizer(open_tokenizer(BYTES)),
        "version": 2,
    }
    digest = hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()
    assert [p.name for p in (tmp_path / "tokens").iterdir()] == [f"a-{digest[:12]}"]


@pytest.mark.parametrize(
    "source, sentence",
    [
        (dict(kind="json", path="a"), "data.sources.web.kind is 'json': did you mean 'jsonl'?"),
        (dict(kind="csv", path="a"), f"kind is 'csv': valid are: {', '.join(sorted(KINDS))}"),
        (dict(path="a"), "data.sources.web.kind is missing: valid are: "),
        (dict(kind="jsonl"), "data.sources.web.path is missing"),
        (dict(kind="jsonl", path=""), "data.sources.web.path is empty"),
        (
            dict(kind="chat", path="a", template="gcs://b/t"),
            "data.sources.web.template is no path that can be used: gcs://b/t has the scheme gcs://",
        ),
        (dict(kind="jsonl", path="a", text_kye="b"), "unknown key data.sources.web.text_kye: did"),
        (dict(kind="jsonl", path="a", weight=0), "data.sources.web.weight must be positive"),
        ("a.jsonl", "data.sources.web must be a mapping with a kind, not 'a.jsonl'"),
    ],
)
def test_a_mistake_in_a_source_is_one_sentence(source, sentence):
    with pytest.raises(ConfigError, match="^[^\n]*$") as error:
        DataConfig(sources={"web": source}, **DATA)
    assert sentence in str(error.value)


def test_every_kind_says_what_it_is():
    for name, cls in KINDS.items():
        assert cls.kind_name == name and cls.__doc__.strip(), name
    assert issubclass(JsonLines, TextSource)


@pytest.mark.parametrize("command", ["tokenize", "train-tokenizer"])
@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--kind", "tokens"], r"--kind tokens holds tokens, not text: name it in a config"),
        (["--kind", "jsnol"], r"--kind is 'jsnol': did you mean 'jsonl'\?"),
        (
            ["--kind", "text", "--text_key", "b"],
            "--text_key goes with --kind jsonl or .*, not text",
        ),
        (["--kind", "jsonl", "--text_key", ""], "--text_key is empty"),
    ],
)
def test_commands_read_kinds_of_text(command, options, sentence, tmp_path, capsys):
    given = ["--source", str(tmp_path / "a"), "--out", str(tmp_path / "b")]
    more = ["--vocab_size", "300"] if command == "train-tokenizer" else []
    assert main([command, *given, *more, *options]) == 2
    assert re.match(rf"hybridlm: {sentence}", capsys.readouterr().err)
    assert not (tmp_path / "b").exists()
