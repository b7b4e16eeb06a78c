"""Sources: all kinds yield the same documents, and unreadable input raises a one-sentence error."""

import gzip
import json
import sys
import tarfile

import numpy as np
import pytest
from data_helpers import BYTES, draw_texts, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.data import open_tokenizer, sources
from hybridlm.data.files import source_files
from hybridlm.data.sources import ArrayRecords, JsonLines, ParquetFiles, TextFiles
from hybridlm.errors import DataError


def write(kind, path, documents):
    """Writes documents as a source of any kind and returns its config."""
    if kind == "text":
        path.mkdir()
        for i, text in enumerate(documents):
            (path / f"{i:05d}.txt").write_bytes(text.encode())
        return TextFiles(str(path / "*.txt"))
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"n": range(len(documents)), "text": documents}), path)
        return ParquetFiles(str(path))
    if kind == "arrayrecord":
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:4")
        for text in documents:
            writer.write(text.encode())
        writer.close()
        return ArrayRecords(str(path))
    data = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in documents).encode()
    path = path.with_suffix(kind.removeprefix("jsonl"))
    if kind == "jsonl.gz":
        data = gzip.compress(data)
    if kind == "jsonl.zst":
        import zstandard

        half = len(data) // 2  # two frames, as parallel compressors write
        # With checksums, as the zstd command writes; without them damage may be undetected.
        compressor = zstandard.ZstdCompressor(write_checksum=True)
        data = b"".join(compressor.compress(part) for part in (data[:half], data[half:]))
    path.write_bytes(data)
    return JsonLines(str(path))


KINDS = "text jsonl jsonl.gz jsonl.zst parquet arrayrecord".split()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_yields_the_documents_in_order(tmp_path, kind):
    documents = draw_texts(np.random.default_rng(), 300)
    source = write(kind, tmp_path / "s", documents)
    read = list(source.documents())
    assert [d.text for d in read] == documents
    assert len({d.id for d in read}) == len(documents)
    assert read == list(source.documents())
    assert not any(str(tmp_path) in d.id for d in read), "an id contains the path of the source"


@settings(max_examples=30, deadline=None)
@given(documents=st.lists(texts.filter(bool), min_size=1, max_size=9))
def test_jsonl_returns_any_text(documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "a.jsonl"
    # No newline at the end, and "\r\n" in between: both are JSON Lines.
    path.write_bytes("\r\n".join(json.dumps({"text": t}) for t in documents).encode())
    read = list(JsonLines(str(path)).documents())
    assert [d.text for d in read] == documents


def test_globs_and_folders_are_sorted_and_relative(tmp_path):
    for name in ("b/2.txt", "a/1.txt", "c.txt", ".hidden/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for path in (tmp_path, tmp_path / "**" / "*.txt"):
        names = [f.name for f in source_files(str(path))]
        assert names == ["a/1.txt", "b/2.txt", "c.txt"]


def test_links_to_folders_are_followed(tmp_path):
    for name in ("s/a.txt", "elsewhere/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    (tmp_path / "s" / "more").symlink_to(tmp_path / "elsewhere")
    names = [f.name for f in source_files(str(tmp_path / "s"))]
    assert names == ["a.txt", "more/b.txt"]


def corrupt_text(path):
    path.write_bytes(b"good \xc3\xa9 then \xff bad")
    return TextFiles(str(path)), ["invalid UTF-8 at byte 13"]


def jsonl_case(data, words, **kwargs):
    def make(path):
        path.write_bytes(data)
        return JsonLines(str(path), **kwargs), words

    return make


def empty_glob(path):
    return TextFiles(str(path / "*.txt")), ["the glob holds no file"]


def dangling_link(path, pattern=""):
    path.mkdir()
    (path / "a.txt").write_text("a")
    (path / "b.txt").symlink_to("/no/such/file")
    return TextFiles(str(path / pattern)), ["b.txt: is not a file, or is a broken link"]


def linked_loop(path):
    path.mkdir()
    (path / "a.txt").write_text("a")
    (path / "again").symlink_to(path)
    return TextFiles(str(path)), ["again: is a link to", "is already in the source"]


def empty_folder(path):
    path.mkdir()
    (path / ".x").write_text("hidden")
    return TextFiles(str(path)), ["the folder holds no file"]


def no_file(path):
    return JsonLines(str(path / "no.jsonl")), ["there is no such file or folder"]


def truncated(kind, words):
    def make(path):
        documents = draw_texts(np.random.default_rng(), 3000)
        source = write(kind, path, documents)
        with open(source.path, "rb") as file:
            data = file.read()
        with open(source.path, "wb") as file:
            file.write(data[: len(data) * 2 // 3])
        return source, words

    return make


def flipped(kind, at, words):
    def make(path):
        documents = draw_texts(np.random.default_rng(), 500)
        source = write(kind, path, documents)
        with open(source.path, "r+b") as file:
            data = bytearray(file.read())
            data[int(len(data) * at)] ^= 0x55
            file.seek(0)
            file.write(data)
        return source, words

    return make


def parquet_table(words, text_key="text", **columns):
    def make(path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)
        return ParquetFiles(str(path), text_key=text_key), words

    return make


def empty_record(path):
    return write("arrayrecord", path, ["a", "b", ""]), [":2: the document has no text"]


def bytes_record(path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(b"fine")
    writer.write(b"ab\xff")
    writer.close()
    return ArrayRecords(str(path)), [":1: invalid UTF-8 at byte 2"]


GOOD = b'{"text": "a"}\n'
CASES = {
    "invalid UTF-8": corrupt_text,
    "key twice": jsonl_case(
        GOOD + b'{"text": "a", "b": {"text": 1}, "text": "b"}\n', [":2:", "the key 'text' twice"]
    ),
    "byte order mark": jsonl_case(b"\xef\xbb\xbf" + GOOD, [":1:", "byte order mark"]),
    "malformed line": jsonl_case(GOOD + b'{"text": "b"', [":2: malformed JSON", "one JSON object"]),
    "blank line": jsonl_case(GOOD + b"\n" + GOOD, [":2: the line is empty"]),
    "UTF-8 in a line": jsonl_case(GOOD + b'{"text": "\xe9"}\n', [":2: invalid UTF-8 at byte 10"]),
    "no object": jsonl_case(b"[1]\n", [":1: the line is a JSON list, not an object"]),
    "missing key": jsonl_case(b'{"txt": "a", "n": 1}\n', [":1:", "no key 'text'", "txt, n"]),
    "null": jsonl_case(b'{"text": null}\n', [":1: 'text' is null, not text"]),
    "number": jsonl_case(b'{"body": 3}\n', [":1: 'body' is int"], text_key="body"),
    "surrogate": jsonl_case(
        b'{"text": "ab\\ud800"}\n', [":1:", "unpaired surrogate at character 2"]
    ),
    "empty document": jsonl_case(GOOD + b'{"text": ""}\n', [":2: the document has no text"]),
    "deep JSON": jsonl_case(b"[" * 200_000 + b"\n", [":1: malformed JSON"]),
    "5,000 digits": jsonl_case(GOOD + b"1" * 5000 + b"\n", [":2: malformed JSON"]),
    "glob": empty_glob,
    "dangling link": dangling_link,
    "dangling link in a glob": lambda p: dangling_link(p, "*.txt"),
    "folder linked to itself": linked_loop,
    "folder": empty_folder,
    "no file": no_file,
    "truncated gzip": truncated("jsonl.gz", ["the gzip file is truncated"]),
    "truncated zstd": truncated("jsonl.zst", ["the zstd file is truncated"]),
    "truncated parquet": truncated("parquet", ["not a readable parquet file", "copy it again"]),
    "truncated ArrayRecord": truncated("arrayrecord", ["not a readable ArrayRecord file"]),
    "corrupt gzip": flipped("jsonl.gz", 0.5, ["s.gz"]),
    "corrupt zstd": flipped("jsonl.zst", 0.0, ["the zstd file is corrupt"]),
    "corrupt parquet": flipped("parquet", 1 - 1e-9, ["not a readable parquet file"]),
    "corrupt ArrayRecord": flipped("arrayrecord", 0.01, ["not a readable ArrayRecord file"]),
    "no gzip": lambda p: (jsonl_case(GOOD, 0)(p.with_suffix(".gz"))[0], ["gzip file is corrupt"]),
    "no column": parquet_table(["no column 'text'", "columns are: n"], n=[1]),
    "parquet null": parquet_table([":1: 'text' is null"], text=["a", None]),
    "parquet number": parquet_table([":0: 'text' is int"], text=[1]),
    "parquet binary": parquet_table([":1: invalid UTF-8 at byte 1"], text=[b"a", b"b\xff"]),
    "no row": parquet_table(["holds no document"], text=[]),
    "empty record": empty_record,
    "binary record": bytes_record,
}


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".parquet", ".arrayrecord"])
def test_a_file_of_0_bytes_among_others_is_refused(suffix, tmp_path):
    """No kind of file is whole with 0 bytes of documents; gzip and zstd report no error."""
    kind = suffix[1:] if suffix in (".parquet", ".arrayrecord") else f"jsonl{suffix}"
    folder = tmp_path / "s"
    folder.mkdir()
    write(kind, folder / "a", ["good"])
    (folder / f"b{suffix}").write_bytes(b"")
    source = sources.KINDS[kind.partition(".")[0]](str(folder))
    with pytest.raises(DataError, match=rf"s/b{suffix}: (the file has 0 bytes|not a readable)"):
        list(source.documents())


@pytest.mark.parametrize("name", ["a.jsonl.bz2", "a.tar", "a.tar.gz", "a.tgz", "a.jsonl.xz"])
@pytest.mark.parametrize("kind", ["jsonl", "text"])
def test_an_archive_is_refused_before_it_is_read(kind, name, tmp_path):
    """A tar of text is valid UTF-8: its headers would be trained on."""
    with tarfile.open(tmp_path / name, "w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    source = sources.KINDS[kind](str(tmp_path / name))
    with pytest.raises(DataError, match=r"files are not read: unpack it"):
        source.check(open_tokenizer(BYTES))
    with pytest.raises(DataError, match=r"files are not read: unpack it"):
        list(source.documents())


def test_separators_of_lines_in_unicode_do_not_end_a_line(tmp_path):
    text = "one\u2028two\u2029three\x85four\x1c"
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" + GOOD)
    assert [d.text for d in JsonLines(str(path)).documents()] == [text, "a"]


@pytest.mark.parametrize("case", CASES)
def test_unreadable_input_raises_one_sentence(case, tmp_path):
    source, words = CASES[case](tmp_path / "s")
    with pytest.raises(DataError) as error:
        list(source.documents())
    message = str(error.value)
    assert source.path in message or source.path.split("*")[0] in message
    for word in words:
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet", "arrayrecord"])
def test_a_flipped_byte_never_silently_drops_a_document(kind, tmp_path):
    """A checksum detects the damage, or the text differs; no document is missing."""
    rng = np.random.default_rng()
    documents = draw_texts(rng, 200)
    source = write(kind, tmp_path / "s", documents)
    with open(source.path, "rb") as file:
        data = file.read()
    for at in rng.choice(np.flatnonzero(np.frombuffer(data, np.uint8)), 20):
        changed = bytearray(data)
        changed[at] ^= 0x55
        with open(source.path, "wb") as file:
            file.write(changed)
        try:
            read = [d.text for d in source.documents()]
        except DataError:
            continue
        assert len(read) == len(documents), f"byte {at} flipped: {len(read)} documents"


@pytest.mark.parametrize(
    "kind, module",
    [("parquet", "pyarrow"), ("arrayrecord", "array_record"), ("jsonl.zst", "zstandard")],
)
def test_a_missing_library_names_the_extra(kind, module, tmp_path, monkeypatch):
    source = write(kind, tmp_path / "s", ["a"])
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"needs {module}.*pip install 'hybridlm\[data\]'"):
        list(source.documents())


def test_documents_are_streamed(tmp_path):
    """The first document is yielded before the reader reaches the malformed line."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD * 200_000 + b"bad\n")
    documents = JsonLines(str(path)).documents()
    assert next(documents).text == "a"
    with pytest.raises(DataError, match=":200001: malformed JSON"):
        list(documents)
