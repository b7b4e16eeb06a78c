"""Strict JSON: any value is read back, NaN too, and a key that an object has twice is refused."""

import ast
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm import config
from hybridlm.data.tokenizers import train_bpe
from hybridlm.errors import UserError
from hybridlm.evals.questions import read_questions
from hybridlm.runs import json_files
from hybridlm.settings.json_text import dumps, loads, parse_json
from launch.submission import read_record

keys = st.text(max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@given(value=values, indent=st.sampled_from([None, 1]), ascii=st.booleans())
def test_any_value_is_read_back(value, indent, ascii):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii)
    assert parse_json(text) == value


@given(value=st.text(max_size=6))
def test_bytes_may_begin_with_a_byte_order_mark_and_text_may_not(value):
    text = json.dumps({"a": value})
    assert parse_json(b"\xef\xbb\xbf" + text.encode()) == {"a": value}
    with pytest.raises(ValueError, match="begins with a byte order mark"):
        parse_json("\ufeff" + text)


@given(key=keys, outer=st.lists(keys, max_size=4), inside=values, before=values)
def test_a_key_that_an_object_has_twice_is_refused(key, outer, inside, before):
    """Wherever the object is, however the key is written; equal keys of two objects are fine."""
    written, escaped = json.dumps(key), '"' + "".join(f"\\u{ord(c):04x}" for c in key) + '"'
    if any(ord(c) > 0xFFFF for c in key):
        escaped = written
    text = f"{{{written}: {json.dumps(before)},\n{json.dumps('a' + key)}: [{{{written}: 1}}],\n{escaped}: 2}}"
    for name in outer:
        text = f"[{{{json.dumps(name)}: {text}}}, {json.dumps(inside)}]"
    with pytest.raises(ValueError, match="twice, the second time in line 3") as error:
        parse_json(text)
    assert repr(key) in str(error.value)


def _tokenizer_config(path):
    (path.parent / "tokenizer_config.json").write_bytes(path.read_bytes())
    train_bpe(["a b c"] * 9, 258, path.parent / "t.json")


READERS = {
    "a run's config": config.read_json,
    "a file of a run or model": json_files.read_json,
    "questions": read_questions,
    "the record of submitted runs": read_record,
    "tokenizer_config.json": _tokenizer_config,
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_of_a_json_file_names_file_key_and_line(name, tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"seed": 1,\n "model": 2,\n "seed": 3}')
    with pytest.raises(UserError, match=r"\.json.*'seed' twice, the second time in line 3"):
        READERS[name](path)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_of_a_json_file_refuses_one_that_is_nested_too_deeply(name, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"\.json"):
        READERS[name](path)


NAMES = ("NaN", "Infinity", "-Infinity", "nan", "inf", "-inf")
LOOKALIKES = st.builds("{}{}".format, st.integers(0, 3).map("~".__mul__), st.sampled_from(NAMES))
TEXTS = st.text() | LOOKALIKES
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def same(a, b):
    """Equality in which NaN equals NaN, and 1 does not equal 1.0."""
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@settings(max_examples=50, deadline=None)
@given(VALUES, st.booleans(), st.booleans())
def test_what_we_write_is_read(value, old_names, as_bytes):
    text = dumps(value)
    assert same(value, loads(text.encode() if as_bytes else text, old_names))


@settings(max_examples=25, deadline=None)
@given(VALUES)
def test_what_we_write_is_json_of_the_standard(value):
    def refuse(word):
        raise AssertionError(f"bare {word}")

    json.loads(dumps(value), parse_constant=refuse)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_the_bare_words_of_older_files_are_read(word):
    assert same(loads(f'{{"a": {word}}}'), {"a": float(word)})


@pytest.mark.parametrize("name", ["nan", "inf", "-inf"])
def test_older_names_are_numbers_only_where_they_were_written(name):
    assert same(loads(f'["{name}"]', old_names=True), [float(name)])
    assert loads(f'["{name}"]') == [name]


def test_no_code_writes_the_bare_words(root):
    """`json.dumps` writes NaN, which JSON has not, unless it is told not to."""
    found = []
    for folder in ("hybridlm", "launch", "experiments", "benchmarks", "kernels_pallas", "docs"):
        for path in (root / folder).rglob("*.py"):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            text = "" if hidden else path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)) if "json.dump" in text else ():
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                plain = ast.unparse(node.func) in ("json.dump", "json.dumps")
                if plain and not any(word.arg == "allow_nan" for word in node.keywords):
                    found.append(f"{path}:{node.lineno}")
    assert not found, found
