"""Records: what is written is read, a bad line is shown, and TensorBoard's file has the scalars."""

import math
import struct
import sys
import types

import pytest

from hybridlm.errors import RunError, UserError, WriteError
from hybridlm.runs import metrics

RECORDS = [
    {"kind": "train", "step": 1, "loss": 2.5},
    {"kind": "train", "step": 2, "loss": math.inf, "by": [{"x": -math.inf}]},
    {"kind": "sample", "step": 2, "text": "NaN", "prompt": "inf"},
]


def written(path, records=RECORDS):
    writer = metrics.JsonlWriter(path)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_records_are_read_as_they_were_written_also_when_cut_back(tmp_path):
    path = written(tmp_path / metrics.FILE)
    assert metrics.read(path) == RECORDS
    metrics.cut_back(path, 1)
    assert metrics.read(path) == RECORDS[:1]


@pytest.mark.parametrize("name, value", [("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf)])
def test_the_names_that_older_runs_wrote_are_numbers(tmp_path, name, value):
    path = tmp_path / metrics.FILE
    path.write_text(f'{{"kind": "train", "step": 1, "loss": "{name}"}}\n')
    assert repr(metrics.read(path)[0]["loss"]) == repr(value)


@pytest.mark.parametrize(
    "line, shown",
    [
        (b"{'kind': 1}", "\"{'kind': 1}\""),
        (b"\xff\x00", "'\ufffd\\x00'"),
        (b"x" * 60 + b"y" * 60, f"'{'x' * 50} ... {'y' * 25}'"),
    ],
)
def test_a_line_that_is_not_a_record_is_shown(tmp_path, line, shown):
    path = written(tmp_path / metrics.FILE)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(RunError) as caught:
        metrics.read(path)
    assert f"{path} is damaged in line 4 (" in str(caught.value)
    assert str(caught.value).endswith(f"): remove that line, {shown}")


@pytest.mark.parametrize(
    "line, reason",
    [
        ("3", "it is no JSON object"),
        ("[]", "it is no JSON object"),
        ("null", "it is no JSON object"),
        ("{}", "it has no kind"),
        ('{"kind": 3, "step": 1}', "it has no kind"),
        ('{"kind": "train"}', "it has no step"),
        ('{"kind": "train", "step": "4"}', "it has no step"),
    ],
)
def test_a_line_without_what_every_reader_uses_is_damage(tmp_path, line, reason):
    path = written(tmp_path / metrics.FILE)
    path.write_text(path.read_text() + line + "\n")
    for read in (metrics.read, lambda path: metrics.cut_back(path, 1)):
        with pytest.raises(RunError) as caught:
            read(path)
        said = f"{path} is damaged in line 4 ({reason}): remove that line, {line!r}"
        assert str(caught.value) == said


def test_a_model_folder_has_records_without_a_step(tmp_path):
    path = tmp_path / metrics.FILE
    path.write_text('{"kind": "heads", "step": null}\n')
    assert metrics.read(path) == [{"kind": "heads", "step": None}]


@pytest.mark.parametrize("writer", ["jsonl", "tensorboard"])
def test_a_full_disk_is_one_sentence_with_the_path(tmp_path, full_disk, writer):
    opened = {
        "jsonl": lambda: metrics.JsonlWriter(tmp_path / metrics.FILE),
        "tensorboard": lambda: metrics.TensorBoardWriter(tmp_path / "tensorboard", 0),
    }[writer]()
    with full_disk(500), pytest.raises(WriteError) as caught:
        for step in range(20):
            opened.write({"kind": "train", "step": step, "loss": 1.5, "other": 2.5})
    opened.close()
    place = {"jsonl": metrics.FILE, "tensorboard": "tensorboard/events.out.tfevents."}[writer]
    assert str(caught.value).startswith(str(tmp_path / place))
    assert str(caught.value).endswith("cannot be written: File too large")


def test_records_before_the_disk_was_full_stay_and_more_are_added_once_there_is_room(small_disk):
    path = small_disk.path / metrics.FILE
    small_disk.resize(8)
    writer, written = metrics.JsonlWriter(path), 0
    with pytest.raises(WriteError) as caught:
        for step in range(1000):
            writer.write({"kind": "train", "step": step, "text": "x" * 100})
            written += 1
    writer.close()
    assert str(caught.value) == f"{path} cannot be written: No space left on device"
    assert [record["step"] for record in metrics.read(path)] == list(range(written))
    with pytest.raises(WriteError, match=f"^{path} cannot be written: No space left on device$"):
        metrics.cut_back(path, written)  # a resume before there is room
    assert [record["step"] for record in metrics.read(path)] == list(range(written))
    small_disk.resize(64)
    metrics.cut_back(path, written)
    writer = metrics.JsonlWriter(path)
    writer.write({"kind": "train", "step": written})
    writer.close()
    assert [record["step"] for record in metrics.read(path)] == list(range(written + 1))


def test_tensorboard_reads_the_finite_scalars(tmp_path):
    """Also where an earlier session went further: its later events are marked as dropped."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    writer = metrics.TensorBoardWriter(tmp_path, resume_step=4)
    writer.write({"kind": "train", "step": 5, "loss": 1.5, "bad": math.nan, "text": "x"})
    writer.close()
    (file,) = tmp_path.iterdir()
    rest, events = file.read_bytes(), []
    while rest:
        size = struct.unpack("<Q", rest[:8])[0]
        content = rest[12 : 12 + size]
        sums = struct.unpack("<II", rest[8:12] + rest[12 + size : 16 + size])
        assert sums == (masked_crc32c(rest[:8]), masked_crc32c(content))
        events.append(event_pb2.Event.FromString(content))
        rest = rest[16 + size :]
    version, start, loss = events
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, event_pb2.SessionLog.START)
    assert [(v.tag, v.simple_value) for v in loss.summary.value] == [("train/loss", 1.5)]
    assert loss.step == 5 and abs(loss.wall_time - version.wall_time) < 60


def test_weights_and_biases_is_told_the_id_and_the_scalars(monkeypatch):
    """With a stand-in for the package: which run begins or goes on, and what is logged under it."""
    begun, logged, finished = [], [], []

    class Run:
        def __init__(self, **given):
            self.id = given["id"]
            begun.append(given)

        def log(self, values, step):
            logged.append((self.id, step, values))

        def finish(self):
            finished.append(self.id)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=Run))
    for run_id in ("first", "second", "first"):
        writer = metrics.WandbWriter("project", "lr=0.1", run_id, {"lr": 0.1})
        writer.write({"kind": "train", "step": 4, "loss": 1.5, "targets": 7, "text": "x"})
        writer.flush()
        writer.close()
    same = dict(project="project", name="lr=0.1", resume="allow", config={"lr": 0.1})
    assert [given | same for given in begun] == begun
    assert [given["id"] for given in begun] == finished == ["first", "second", "first"]
    values = {"train/loss": 1.5, "train/targets": 7}
    assert logged == [(run_id, 4, values) for run_id in finished]


def test_a_missing_weights_and_biases_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'hybridlm\[wandb\]'"):
        metrics.WandbWriter("project", "lr=0.1", "id", {})


def test_weights_and_biases_knows_runs_of_one_name_apart(tmp_path, monkeypatch):
    """Offline, which needs no account; a resumed run goes on under its id."""
    pytest.importorskip("wandb", reason="no wandb: pip install 'hybridlm[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    for run_id in ("first", "second", "first"):
        writer = metrics.WandbWriter("project", "lr=0.1", run_id, {"lr": 0.1})
        writer.write({"kind": "train", "step": 1, "loss": math.nan})
        writer.close()
    folders = [path.name for path in tmp_path.glob("wandb/offline-run-*")]
    assert {name.rpartition("-")[2] for name in folders} == {"first", "second"}
