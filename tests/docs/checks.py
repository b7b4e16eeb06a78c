"""What the commands of pages must have written."""

import base64
import json
import pathlib
import re

import numpy as np

from hybridlm.analysis import open_model as inspect_model
from hybridlm.analysis.report import attention_text
from hybridlm.probes.registry import PROBES
from hybridlm.runs import checkpoint, lineage, metrics, open_model


def of_readme(said: list[str]) -> None:
    assert len(said) >= 8
    assert pathlib.Path("runs/mine/report.html").exists()
    assert pathlib.Path("runs/tokens/manifest.json").exists()


def of_evals(said: list[str]) -> None:
    """The files that the page names, with the records of all tasks."""
    out = pathlib.Path("runs/demo/evals")
    assert {p.name for p in out.iterdir()} == {"eval.json", "eval.txt", "needle.svg", "tasks.svg"}
    by_task = {r["task"]: r for r in json.loads((out / "eval.json").read_text())["records"]}
    assert list(by_task) == ["needle", "niah_single_1", "perplexity"]
    assert len(by_task["needle"]["by_depth"]) == 10 and by_task["needle"]["samples"] == 20
    for name in ("needle", "niah_single_1"):
        record = by_task[name]
        scores = [answer["score"] for answer in record["answers"]]
        assert record["accuracy"] == np.mean(scores) and len(scores) == record["samples"]
        for answer in record["answers"]:
            assert answer["score"] == float(answer["references"][0] in answer["answer"])
    assert 0 < by_task["perplexity"]["bits_per_byte"] < 12
    assert "needle" in (out / "eval.txt").read_text()
    assert (out / "needle.svg").read_text().startswith("<svg")
    longppl = pathlib.Path("runs/demo/longppl/eval.json")
    (record,) = json.loads(longppl.read_text())["records"]
    assert record["tokens"] == 2 * 511 and record["documents"] == 2


def of_probes(said: list[str]) -> None:
    """Records of every probe, at both checkpoints where the command asks for all."""
    assert all("step 8: " in text for text in said[:4])
    out = pathlib.Path("runs/demo/probes")
    records = [json.loads(line) for line in (out / "probes.jsonl").read_text().splitlines()]
    found = {}
    for record in records:
        found.setdefault((record["kind"], record["step"]), []).append(record)
    both = ("retrieval_heads", "entropy", "qk_distance")
    once = set(PROBES) - {*both, "heads", "slot_share"}  # a model without slots has no entry there
    assert set(found) == {(n, s) for n in both for s in (4, 8)} | {(n, 8) for n in once}
    assert all(record["length"] == 256 for record in records)
    best = sorted(found["retrieval_heads", 8], key=lambda e: -e["mass"])[:4]
    for step in (4, 8):
        heads = found["retrieval_heads", step]
        assert len(heads) == 8 and {e["mixer"] for e in heads} == {"swa", "full"}
        assert len(found["entropy", step]) == 4  # the same heads, chosen at step 8
        assert {e["distance"] > 0 for e in found["qk_distance", step]} == {step == 4}
        assert {(e["layer"], e["head"]) for e in found["entropy", step]} == {
            (e["layer"], e["head"]) for e in best
        }
    assert [e["window"] for e in found["receptive_field", 8]] == [None, 16, 64]
    masked = [e["which"] for e in found["head_masking", 8]]
    assert masked == ["none", "retrieval", "random", "random"]
    assert [e["mixer"] for e in found["layer_probing", 8]] == ["swa", "full", "rec"]
    assert "layer_probing: " in (out / "probes.txt").read_text()
    assert pathlib.Path("runs/watched/probes.jsonl").exists()


def of_reports(said: list[str]) -> None:
    """Every command names its file; the view of attention has the layers that it was asked for."""
    files = [text.strip() for text in said if text.strip().endswith(".html")]
    assert len(files) == 6 and all(pathlib.Path(name).is_file() for name in files)
    data = re.search(
        r'id="data">(.*?)</script>', pathlib.Path("attention.html").read_text(), re.DOTALL
    )
    (view,) = json.loads(data[1])["views"]
    assert "".join(view["tokens"]).endswith("Fellow citizens of the Senate")
    assert [m["label"] for m in view["maps"]] == ["layer 1: full", "layer 4: full"]
    model = inspect_model("runs/demo")
    for layer, packed in zip((1, 4), view["maps"], strict=True):
        found = np.frombuffer(base64.b64decode(packed["data"]), "<f4")
        weights = model.attention("Fellow citizens of the Senate", layer)[0]
        np.testing.assert_allclose(found.reshape(weights.shape), weights, atol=1e-6)
    assert len(attention_text(model, "Fellow").layers) == 6  # RG-LRU and windows too
    assert pathlib.Path("curves.pdf").read_bytes().startswith(b"%PDF")


def of_runs(said: list[str]) -> None:
    """Each stage of the life begins with the one before it, and not with drawn parameters."""
    runs = pathlib.Path("runs/life")
    chain = lineage.read(runs / "finetune")
    assert [(o.path, o.step) for o in chain] == [
        ("runs/life/extend", 8),
        ("runs/life/decay", 10),
        ("runs/life/pretrain", 8),
    ]
    assert any(all(o.parameters_sha256 in text for o in chain) for text in said)
    new = _losses(runs / "pretrain")[0]
    for stage, before in (("decay", "pretrain"), ("extend", "decay")):
        first, last = _losses(runs / stage)[0], _losses(runs / before)[-1]
        assert abs(first - last) < (new - last) / 4, f"{new} at first, then {last} -> {first}"
    for name in ("model", "average"):
        assert pathlib.Path(f"runs/demo-{name}/model.json").exists()


def of_finetuning(said: list[str]) -> None:
    """The run begins with the demo's parameters, and the answers improve."""
    (origin,) = lineage.read(pathlib.Path("runs/finetune"))
    assert (origin.path, origin.step) == ("runs/demo", 8)
    assert origin.parameters_sha256 == checkpoint.digest(open_model("runs/demo").params)
    losses = _losses(pathlib.Path("runs/finetune"))
    assert losses[-1] < losses[0] - 0.5
    assert pathlib.Path("runs/finetune/answers/eval.json").exists()


def of_sweeps(said: list[str]) -> None:
    """Dry runs list every run and make none."""
    listed = [text for text in said if text]  # a mistake prints nothing there
    assert len(listed) == 4
    for text in listed:
        assert all(f"swa.window={window} " in text for window in (16, 64, 256))
    assert not pathlib.Path("runs/window").exists()


def of_convert(said: list[str]) -> None:
    assert open_model("models/llama").config == open_model("exported").config


def of_distill(said: list[str]) -> None:
    assert open_model("student").config.layout.names[0] != "full"


def of_gallery(said: list[str]) -> None:
    assert pathlib.Path("kimi.svg").read_text().startswith("<svg")
    assert "kimi_k3" in pathlib.Path("gallery.html").read_text()


def of_storage(bucket: pathlib.Path) -> None:
    assert checkpoint.steps(bucket / "runs" / "demo")
    assert (bucket / "tokens" / "manifest.json").exists()


def _losses(path: pathlib.Path) -> list[float]:
    return [r["loss"] for r in metrics.read(path / metrics.FILE) if r["kind"] == "train"]
