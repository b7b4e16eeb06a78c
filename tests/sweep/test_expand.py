"""Expansion of `sweep()` to runs, names, differences and costs; refusals are one sentence."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm import config as configs
from hybridlm import sweep as sweeps
from hybridlm.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig, to_dict
from hybridlm.config.load import literal, text
from hybridlm.sweep.names import dns_label, run_name, short_key
from hybridlm.sweep.plan import differences
from hybridlm.sweep.progress import newest_progress

HEAD = """
from hybridlm.config.load import recipe

def get_config(arg=""):
    return recipe(f"configs/demo.py:{arg or 'smoke'}")

"""


@pytest.fixture
def recipe(in_root, tmp_path):
    """Writes a recipe of the demo, smoke-sized, whose sweep() has the given body."""

    def write(body, head=HEAD, signature="def sweep():"):
        path = tmp_path / "mine.py"
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        path.write_text(f"{head}{signature}\n{lines}\n" if body else head)
        return str(path)

    return write


def test_runs_are_named_by_their_settings_and_duplicates_are_dropped(recipe):
    spec = recipe(
        "import numpy as np\n"
        "for lr in np.logspace(-3, -2, 2):\n"
        "    for window in (8, 16, 16.0):\n"
        '        yield {"optimizer.lr": lr, "model.mixers.swa.window": window}\n'
        'yield {"model.mixers.swa.window": 8, "optimizer.lr": 1e-3}\n'
        'yield {"model.pattern": "swa*2 full", "optimizer.schedule": "linear"}\n'
        'yield {"model.mixers.rec": dict(kind="gla", heads=4)}'
    )
    sweep = sweeps.expand(spec)
    assert [run.name for run in sweep.runs] == [
        "swa.window=8,lr=0.001",
        "swa.window=16,lr=0.001",
        "swa.window=8,lr=0.01",
        "swa.window=16,lr=0.01",
        "pattern=swa@2+full,schedule=linear",
        "rec.heads=4,rec.kind=gla",
    ]
    assert sweep.duplicates == 3
    assert sweep.runs[0].differences == (
        ("model.mixers.swa.window", 16, 8),
        ("optimizer.lr", 3e-3, 1e-3),
    )
    assert differences(sweep.runs[3]) == "optimizer.lr 0.003 -> 0.01"
    assert "model.mixers.rec.kind 'rglru' -> 'gla'" in differences(sweep.runs[5])


def test_the_overrides_of_a_run_give_its_config(recipe):
    """The settings of the command line come first."""
    spec = recipe('yield {"optimizer.lr": 1e-3}\nyield {}')
    sweep = sweeps.expand(spec, [("train.steps", "5"), ("data.packing", "best_fit")])
    for run in sweep.runs:
        again = configs.load(spec, run.overrides)
        resolved = dataclasses.replace(again.model, vocab_size=run.config.model.vocab_size)
        assert to_dict(dataclasses.replace(again, model=resolved)) == to_dict(run.config)
    assert [run.name for run in sweep.runs] == ["lr=0.001", "base"]
    assert sweep.runs[0].overrides[0] == ("train.steps", "5")
    assert sweep.runs[1].differences == ()


def test_a_sweep_can_take_the_argument(recipe):
    spec = recipe('yield {"seed": len(arg)}', signature="def sweep(arg):")
    assert [run.name for run in sweeps.expand(f"{spec}:smoke").runs] == ["seed=5"]


def test_keys_without_their_section_are_unique():
    """Otherwise two settings would have the same name."""
    sections = (ModelConfig, DataConfig, TrainConfig, OptimizerConfig)
    names = [field.name for cls in sections for field in dataclasses.fields(cls)]
    assert len(names) == len(set(names))
    assert (
        short_key("optimizer.lr") == "lr" and short_key("model.mixers.swa.window") == "swa.window"
    )
    assert short_key("mesh.data") == "mesh.data" and short_key("seed") == "seed"


WORDS = st.text("ab1_-+*@ ,/.", min_size=1, max_size=6)
VALUES = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-3, 10**6),
    WORDS,
    st.lists(WORDS),
    st.floats(allow_nan=False, allow_infinity=False),
)
SETTINGS = st.dictionaries(st.sampled_from(["optimizer.lr", "seed", "model.pattern"]), VALUES)


@settings(max_examples=300, deadline=None)
@given(SETTINGS, SETTINGS)
def test_names_are_valid_folder_names_and_differ_if_settings_differ(one, other):
    """Except for a number and its text (1 and '1'), which cannot both be valid."""

    def shown(setting):
        return json.dumps(
            {k: v if isinstance(v, list) else str(v) for k, v in setting.items()}, sort_keys=True
        )

    names = [run_name(one), run_name(other)]
    for name in names:
        assert 0 < len(name) <= 120 and not set(name) & set("/\\ *?'\"$:\n")
    if shown(one) != shown(other):
        assert names[0] != names[1]
    assert run_name(dict(reversed(one.items()))) == names[0], (
        "the name depends on the order of keys"
    )


@given(st.text("aZ9=.,+@_", min_size=1, max_size=90))
def test_labels_are_dns_labels(name):
    label = dns_label(name, 40)
    assert len(label) <= 40 and label[0].isalpha() and label[-1].isalnum()
    assert all(c.islower() or c.isdigit() or c == "-" for c in label)
    assert dns_label(name + "x", 40) != label


@given(VALUES)
def test_values_survive_the_command_line(value):
    assert literal(text(value, "key")) == value


def test_numpy_numbers_are_written_as_numbers():
    assert text(np.float64(1e-3), "k") == "0.001" and text(np.int64(3), "k") == "3"


BAD = {
    "none": ("", "defines no function sweep(), which yields the overrides of each run as a dict"),
    "empty": ("yield from ()", "yields no run"),
    "not a dict": ("yield 3", "run 1 of sweep() of {} is 3, and not a dict"),
    "raises": ("raise ValueError('why')\nyield", "sweep() of {} failed: ValueError: why"),
    "unknown key": (
        'yield {}\nyield {"optimizer.lrr": 1}',
        "run 2 of sweep() of {} (optimizer.lrr=1): unknown key optimizer.lrr: did you mean 'lr'?",
    ),
    "bad value": (
        'yield {"model.mixers.swa.window": 0}',
        "run 1 of sweep() of {} (model.mixers.swa",
    ),
    "no text": ('yield {"optimizer.lr": object()}', "which a command line cannot express"),
    "taken": ('yield {"train.steps": 4}', "--config.train.steps is set by sweep() too"),
    "under a taken one": (
        'yield {"train": dict(steps=3)}',
        "--config.train.steps is set by sweep()",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_sweep_is_refused_with_one_sentence(recipe, refusal, tmp_path, case):
    body, sentence = BAD[case]
    spec = recipe(body)
    root = tmp_path / "runs"
    message = refusal("sweep", "--config", spec, "--root", root, "--config.train.steps=8")
    assert sentence.format(spec) in message
    assert not root.exists(), "something was started"


REFUSED = [
    (["--to", "slrum"], "--to 'slrum' is unknown: did you mean 'slurm'?"),
    (["--parallel", "0"], "--parallel must be at least 1, not 0"),
    (["--site", "gone.toml"], "--site gone.toml cannot be read"),
    (["--to", "xpk"], "xpk needs --site FILE.toml with a table [xpk]"),
    (["--to", "sky"], "sky needs --site FILE.toml with a table [sky]"),
    (["--root", "{tmp}/mine.py"], "mine.py is a file: name a folder"),
    (["--root", "/proc/none"], "--root /proc/none cannot be written"),
]


@pytest.mark.parametrize("words, sentence", REFUSED, ids=[" ".join(w) for w, _ in REFUSED])
def test_invalid_launch_options_are_refused_with_one_sentence(
    recipe, refusal, tmp_path, words, sentence
):
    spec = recipe('yield {"seed": 1}')
    words = [word.format(tmp=tmp_path) for word in words]
    root = [] if "--root" in words else ["--root", tmp_path / "runs"]
    assert sentence in refusal("sweep", "--config", spec, *root, *words)


SITES = [
    ('[slurm]\npartitoin = "x"', "unknown key slurm.partitoin: did you mean 'partition'?"),
    ('[slrum]\npartition = "x"', "unknown key slrum: did you mean 'slurm'?"),
    ("[local]\ngpus = 4", "local.gpus must be a list, not 4 (int)"),
    ('[xpk]\ncluster = "c"\ntpu_type = "t"\nroot = "/r"', "xpk.docker_image or base_docker_image"),
    ('[xpk]\ncluster = "c"', "xpk.tpu_type is missing"),
    ("[slurm", "is not valid TOML"),
]


@pytest.mark.parametrize("toml, sentence", SITES, ids=[s for _, s in SITES])
def test_an_invalid_site_file_is_refused_with_one_sentence(
    recipe, refusal, tmp_path, toml, sentence
):
    site = tmp_path / "site.toml"
    site.write_text(toml)
    spec = recipe('yield {"seed": 1}')
    message = refusal("sweep", "--config", spec, "--root", tmp_path / "runs", "--site", site)
    assert message.startswith(f"hybridlm: --site {site}") and sentence in message


def test_the_dry_run_counts_like_train_and_writes_nothing(recipe, command, impatient, tmp_path):
    """Parameters, tokens and FLOPs equal those of `hybridlm train --dry_run`; checks the total."""
    rates = (1e-3, 1e-2)
    spec = recipe("\n".join(f'yield {{"optimizer.lr": {rate}}}' for rate in rates))
    root = tmp_path / "runs"
    code, out, err = command("sweep", "--config", spec, "--root", root, "--dry_run")
    assert code == 0 and not root.exists()
    assert f"reading the runs of {spec} ..." in err and "counting what the runs cost" in err
    assert out.splitlines()[0].endswith("2 runs; tokens and FLOPs include padding")
    _, shown, err = command("train", "--config", spec, "--dry_run")
    assert "counting what the run needs ..." in err
    names = ("parameters", "training tokens", "training FLOPs")
    lines = [line for line in shown.splitlines() if line[:20].strip() in names]
    assert [("padding included" in line) for line in lines] == [False, True, True]
    facts = {line[:20].strip(): line[20:].split()[0] for line in lines}
    rows = [line.split() for line in out.splitlines()]
    expected = ["new", facts["parameters"], facts["training tokens"]]
    for row, name in zip(rows[3:5], ("lr=0.001", "lr=0.01")):
        assert row[:4] == [name, *expected]
        assert math.isclose(float(row[4]), float(facts["training FLOPs"]), rel_tol=5e-3)
    total = next(row for row in rows if row[:1] == ["total"])
    tokens = int(facts["training tokens"].replace(",", ""))
    assert total[1:4] == ["2", "runs", f"{2 * tokens:,}"]
    assert f"--workdir {root}/lr=0.001 --config.optimizer.lr=0.001" in out


def test_the_progress_of_a_run_that_is_writing(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"kind": "train", "step": 2, "loss": 5.0}\n{"kind": "eval", "step": 2, "loss": 4.0}\n'
        b'{"kind": "train", "step": 4, "loss": "nan"}\n{"kind": "train", "st'
    )
    progress = newest_progress(tmp_path)
    assert (progress.step, progress.heldout) == (4, 4.0) and math.isnan(progress.loss)
    assert newest_progress(tmp_path / "none").state == "new"
