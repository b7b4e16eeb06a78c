"""Arrow and parquet: columns of token ids and of text give the rows that were written."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import assert_split_holds, assert_store_holds, draw_ids, draw_texts, open_source

from hybridlm.data.settings import DataConfig
from hybridlm.data.sources import ArrowTable, JsonLines, ParquetFiles
from hybridlm.errors import ConfigError, DataError


def write_stream(path, table, rows=7):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def write_saved(folder, table, files=3):
    """A folder as `datasets.Dataset.save_to_disk` lays it out."""
    folder.mkdir()
    bounds = np.linspace(0, len(table), files + 1).astype(int)
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    for name, a, b in zip(names, bounds, bounds[1:]):
        write_stream(folder / name, table.slice(a, b - a))
    state = {"_data_files": [{"filename": n} for n in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def write_file(path, table):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


WRITERS = {
    "saved dataset": (ArrowTable, write_saved),
    "arrow stream": (ArrowTable, write_stream),
    "arrow file": (ArrowTable, write_file),
    "parquet": (ParquetFiles, lambda path, table: pq.write_table(table, path, row_group_size=11)),
}
TYPES = {
    "int32": pa.list_(pa.int32()),
    "int64": pa.list_(pa.int64()),
    "uint16": pa.large_list(pa.uint16()),
}


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("kind", WRITERS)
def test_each_row_of_ids_is_a_document(kind, type_name, tmp_path):
    rng = np.random.default_rng()
    rows = draw_ids(rng, 50)
    rows[int(rng.integers(50))] = []  # a row without ids is in no batch
    cls, write = WRITERS[kind]
    table = pa.table({"n": range(50), "input_ids": pa.array(rows, TYPES[type_name])})
    write(tmp_path / "s", table)
    store = open_source(cls(str(tmp_path / "s"), ids_key="input_ids"), tmp_path)
    assert_store_holds(store, rows, rng)
    again = open_source(cls(str(tmp_path / "s"), ids_key="input_ids"), tmp_path)
    assert again.sha256 == store.sha256


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_of_one_length_and_added_specials(kind, tmp_path):
    rng = np.random.default_rng()
    rows = rng.integers(0, 200, (20, 8)).astype(np.int32)
    cls, write = WRITERS[kind]
    column = pa.FixedSizeListArray.from_arrays(rows.reshape(-1), 8)
    write(tmp_path / "s", pa.table({"ids": column}))
    held = rng.integers(0, 200, (3, 8)).astype(np.int32)
    write(tmp_path / "h", pa.table({"ids": pa.FixedSizeListArray.from_arrays(held.reshape(-1), 8)}))
    source = cls(str(tmp_path / "s"), ids_key="ids", heldout_path=str(tmp_path / "h"), add_eos=True)
    store = open_source(source, tmp_path)
    assert_split_holds(store.train, [[*row, 257] for row in rows.tolist()], rng)
    assert_split_holds(store.heldout, [[*row, 257] for row in held.tolist()], rng)


@pytest.mark.parametrize("kind", ["saved dataset", "arrow stream", "arrow file"])
def test_ids_in_arrow_are_not_copied(kind, tmp_path):
    cls, write = WRITERS[kind]
    rows = [[i % 200] * 500 for i in range(400)]
    write(tmp_path / "s", pa.table({"ids": pa.array(rows, pa.list_(pa.int32()))}))
    before = pa.total_allocated_bytes()
    store = open_source(cls(str(tmp_path / "s"), ids_key="ids"), tmp_path)
    assert pa.total_allocated_bytes() - before < 20_000
    assert store.train.tokens + store.heldout.tokens == 400 * 500


@pytest.mark.parametrize("kind", WRITERS)
def test_text_gives_the_tokens_of_jsonl(kind, tmp_path):
    documents = draw_texts(np.random.default_rng(), 40)
    cls, write = WRITERS[kind]
    write(tmp_path / "s", pa.table({"n": range(40), "body": documents}))
    source = cls(str(tmp_path / "s"), text_key="body")
    assert [d.text for d in source.documents()] == documents
    lines = "".join(json.dumps({"text": t}) + "\n" for t in documents)
    (tmp_path / "a.jsonl").write_text(lines)
    one = open_source(source, tmp_path)
    other = open_source(JsonLines(str(tmp_path / "a.jsonl")), tmp_path)
    for split in ("train", "heldout"):
        a, b = getattr(one, split), getattr(other, split)
        assert a.bytes == b.bytes > 0
        np.testing.assert_array_equal(a.read(0, a.tokens)[0], b.read(0, b.tokens)[0])


def table_of(**columns):
    return pa.table({name: pa.array(*column) for name, column in columns.items()})


IDS = pa.list_(pa.int32())
COLUMNS = {
    "no column": (table_of(a=([[1]], IDS)), "no column 'ids'; the columns are: a"),
    "text": (table_of(ids=(["a"],)), "column 'ids' has type string, and not lists of integers"),
    "floats": (table_of(ids=([[1.0]],)), r"column 'ids' has type list<.*double>, and not lists"),
    "null row": (table_of(ids=([[1], None], IDS)), "column 'ids' has 1 rows that are null"),
    "null id": (table_of(ids=([[1, None]], IDS)), "column 'ids' has ids that are null"),
    "id": (
        table_of(ids=([[1], [2, 258]], IDS)),
        r"token \d is 258, outside the tokenizer's vocabul",
    ),
    "negative id": (table_of(ids=([[1], [-2]], IDS)), r"token \d is -2, outside the tokenizer's"),
    "no row": (table_of(ids=([], IDS)), "holds no token"),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("case", COLUMNS)
def test_a_column_that_does_not_fit_is_one_sentence(kind, case, tmp_path):
    table, sentence = COLUMNS[case]
    cls, write = WRITERS[kind]
    write(tmp_path / "s", table)
    with pytest.raises(DataError, match=f"^[^\n]*{sentence}[^\n]*$"):
        open_source(cls(str(tmp_path / "s"), ids_key="ids"), tmp_path)
    assert not list(tmp_path.glob("cache/*.partial*"))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_truncated_file_is_one_sentence(kind, tmp_path):
    """Wherever it is cut: a stream of batches has no count of them."""
    rng = np.random.default_rng()
    cls, write = WRITERS[kind]
    write(tmp_path / "s", pa.table({"ids": pa.array(draw_ids(rng, 60), IDS)}))
    path = tmp_path / "s"
    path = max(path.glob("*.arrow")) if path.is_dir() else path
    data = path.read_bytes()
    for size in {0, 3, 8, len(data) - 1, len(data) - 8, *rng.integers(9, len(data), 12).tolist()}:
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"^[^\n]*(copy it again)[^\n]*$"):
            open_source(cls(str(tmp_path / "s"), ids_key="ids"), tmp_path)


def test_a_copy_of_ids_without_its_ends_is_refused(tmp_path):
    WRITERS["parquet"][1](tmp_path / "s", pa.table({"ids": pa.array([[1, 2]] * 9, IDS)}))
    source = ParquetFiles(str(tmp_path / "s"), ids_key="ids")
    open_source(source, tmp_path)
    (ends,) = (tmp_path / "cache").rglob("tokens.ends")
    ends.write_bytes(b"")
    with pytest.raises(DataError, match="is truncated; remove the folder"):
        open_source(source, tmp_path)


def test_a_compressed_arrow_file_is_refused(tmp_path):
    table = pa.table({"ids": pa.array([[1, 2, 3]] * 900, IDS)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(tmp_path / "s", table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="is compressed: save it again without compression"):
        open_source(ArrowTable(str(tmp_path / "s"), ids_key="ids"), tmp_path)


def test_a_folder_of_splits_and_an_order_of_rows_are_refused(tmp_path):
    source = ArrowTable(str(tmp_path / "s"), ids_key="ids")
    table = pa.table({"ids": pa.array([[1, 2, 3]] * 9, IDS)})
    write_saved(tmp_path / "s", table)
    state = json.loads((tmp_path / "s" / "state.json").read_text())
    changed = {**state, "_indices_data_files": [{"filename": "indices.arrow"}]}
    (tmp_path / "s" / "state.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match=r"order of rows .*; save it again after flatten_indices"):
        open_source(source, tmp_path)
    (tmp_path / "s" / "state.json").write_text("{")
    with pytest.raises(DataError, match="state.json: malformed JSON"):
        open_source(source, tmp_path)
    (tmp_path / "s" / "state.json").write_text(json.dumps(state))
    (tmp_path / "s" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(DataError, match="data-00001-of-00003.arrow: is named in state.json and mi"):
        open_source(source, tmp_path)
    (tmp_path / "s" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(DataError, match="holds the splits train, test: set path to .*/s/train"):
        open_source(source, tmp_path)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
@pytest.mark.parametrize("name, value", [("heldout_path", "b"), ("add_bos", True)])
def test_settings_of_ids_are_refused_for_text(kind, name, value):
    sources = {"a": {"kind": kind, "path": "a", name: value}}
    with pytest.raises(ConfigError, match=rf"data\.sources\.a\.{name} goes with ids_key"):
        DataConfig(sources=sources, seq_len=8, batch_size=1)


@pytest.mark.parametrize("cls", [ArrowTable, ParquetFiles])
def test_a_missing_library_names_the_extra(cls, tmp_path, monkeypatch):
    (tmp_path / "s").write_bytes(b"ARROW1")
    for name in [n for n in sys.modules if n.partition(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"needs pyarrow.*pip install 'hybridlm\[data\]'"):
        open_source(cls(str(tmp_path / "s"), ids_key="ids"), tmp_path)


@pytest.mark.parametrize("key", ["ids", "text"])
@pytest.mark.parametrize("kind", ["arrow stream", "arrow file", "parquet"])
def test_flipped_bytes_are_a_sentence_or_other_rows(kind, key, tmp_path):
    """And never a crash: pyarrow ends the process where lengths in a damaged file go unchecked."""
    rng = np.random.default_rng()
    cls, write = WRITERS[kind]
    table = pa.table({"ids": pa.array(draw_ids(rng, 9), IDS), "text": draw_texts(rng, 9)})
    write(tmp_path / "s", table)
    data = (tmp_path / "s").read_bytes()
    source = cls(str(tmp_path / "s"), ids_key="ids" if key == "ids" else None)
    for _ in range(20):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), 2):
            damaged[at] = rng.integers(256)
        (tmp_path / "s").write_bytes(damaged)
        try:
            if key == "text":
                list(source.documents())
                continue
            store = open_source(source, tmp_path)
            tokens, _ = store.train.read(0, store.train.tokens)
            assert tokens.min() >= 0 and tokens.max() < 258
        except DataError as error:
            assert "\n" not in str(error)
