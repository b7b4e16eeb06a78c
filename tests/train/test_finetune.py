"""The recipe that fine-tunes the demo's model, and the page about it."""

import gzip
import importlib.util

import pytest

from hybridlm import config as configs
from hybridlm.runs import metrics
from hybridlm.train.loop import train


def test_the_examples_are_those_of_their_script(root):
    path = root / "data" / "examples" / "make_capitals.py"
    spec = importlib.util.spec_from_file_location("make_capitals", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with gzip.open(path.with_name("capitals.jsonl.gz"), "rt", encoding="utf-8") as file:
        assert file.read().splitlines() == script.lines()


@pytest.mark.slow
def test_the_commands_of_the_page_run(in_root, tmp_path, page_commands, command):
    """In their smoke form; the run begins with the demo's parameters, and its answers improve."""
    short = [("data.bigram_baseline", "False"), ("train.tensorboard", "False")]
    demo = tmp_path / "runs" / "demo"
    assert train(configs.load("configs/demo.py:smoke", short), demo) == 0
    changes = [
        f"--config.init.path={demo}",
        "--config.train.steps=40",
        "--config.optimizer.lr=0.01",
        *(f"--config.{key}={value}" for key, value in short),
    ]
    commands = page_commands("finetuning.md")
    assert [words[0] for words, _ in commands] == ["train", "eval", "generate"]
    for words, _ in commands:
        words = [word.replace("runs/", f"{tmp_path}/runs/") for word in words]
        words = [word.replace("finetune.py", "finetune.py:smoke") for word in words]
        code, out, err = command(*words, *(changes if words[0] == "train" else ()))
        assert code == 0 and out, err
    tuned = tmp_path / "runs" / "finetune"
    losses = [r["loss"] for r in metrics.read(tuned / metrics.FILE) if r["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.5
    assert (tuned / "answers" / "eval.json").exists()
