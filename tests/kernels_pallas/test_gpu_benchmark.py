"""The GPU benchmark, as far as a machine without a GPU can run it."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def gpu(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import gpu

    return gpu


@pytest.mark.slow
def test_numbers_are_checked_first_and_ours_are_right(root):
    """Interpreted kernels; forms that are not installed are reported, and nothing is timed."""
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--smoke", "--ops", "window 128", "gate per head"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len([r for r in records if r["form"].startswith("hybridlm") and "errors" in r]) == 6
    assert any(r["form"] == "cuDNN" and "failed" in r for r in records)
    assert not any("seconds" in r for r in records)


def test_forms_without_documents_have_one_and_so_has_our_kernel(gpu, monkeypatch):
    """The work counts only pairs within documents."""

    def rival():
        return gpu.Rival(lambda q, k, v: op.ours("chunked", q, k, v, None))

    op = next(op for op in gpu.OPS if "full" in op.name)
    op = gpu.Op(op.name, op.inputs, op.ours, {"rival": rival}, op.flops)
    monkeypatch.setattr(gpu, "OURS", {gpu.KERNEL: "chunked", "XLA": "chunked"})
    monkeypatch.setattr(gpu, "SECONDS", 1e-4)
    monkeypatch.setattr(gpu.gpu_ops.draw, "__defaults__", (0, 50))
    records = list(gpu.measure(op, gpu.SMOKE, (200,), 64))
    flops = {r["form"]: r["work"][gpu.FORWARD]["flops"] for r in records if "seconds" in r}
    assert list(flops) == [gpu.KERNEL, "XLA", "rival, one document", f"{gpu.KERNEL}, one document"]
    whole = 2 * 2 * (200 * 201 // 2) * gpu.SMOKE.heads * gpu.SMOKE.size
    assert flops[gpu.KERNEL] < 0.8 * whole
    assert flops["rival, one document"] == flops[f"{gpu.KERNEL}, one document"] == whole


def test_a_form_with_wrong_numbers_is_not_timed(gpu, monkeypatch):
    """A rival that forgets to scale, and one that is missing."""

    def wrong():
        return gpu.Rival(lambda log_a, x: 2 * op.ours("chunked", log_a, x, None))

    def missing():
        raise ImportError("No module named 'nothing'")

    op = next(op for op in gpu.OPS if "recurrence" in op.name)
    op = gpu.Op(op.name, op.inputs, op.ours, {"wrong": wrong, "missing": missing}, op.flops)
    monkeypatch.setattr(gpu, "OURS", {"ours": "chunked"} | {"twin": "chunked"})
    monkeypatch.setattr(gpu, "SECONDS", 1e-4)
    records = list(gpu.measure(op, gpu.SMOKE, (64,), 64))
    assert {r["form"] for r in records if "seconds" in r} == {"ours", "twin"}
    assert {r["form"] for r in records if "failed" in r} == {"wrong", "missing"}


def test_the_page_has_shares_and_leaves_blank_what_was_not_measured(gpu):
    work = {"flops": 2e12, "bytes": 1e9}
    timed = {
        "op": "attention",
        "form": "ours",
        "tokens": 2048,
        "work": dict.fromkeys((gpu.FORWARD, gpu.BOTH), work),
        "seconds": {gpu.FORWARD: 4e-3, gpu.BOTH: 8e-3},
    }
    results = {
        "date": "today",
        "machine": {"name": "H200"},
        "versions": {"jax": "0"},
        "peaks": {"flops": 1e15, "bandwidth": 4e12},
        "records": [timed, {"op": "attention", "form": "cuDNN", "failed": "it is not there"}],
    }
    page = gpu.render(results)
    assert "| ours | 4.000 (50%) |" in page and "| ours | 8.000 (25%) |" in page
    assert "| cuDNN |  |" in page and "- cuDNN: it is not there" in page
