"""A bad config gives one sentence that names the key, and exit code 2; no device is used."""

import re
import subprocess
import sys

import pytest

from hybridlm import cli, config
from hybridlm.config.load import recipe
from hybridlm.errors import ConfigError

# (override, part of the sentence): the key, the mistake and the valid values.
BAD = [
    ("model.mixers.swa.windw=3", "unknown key model.mixers.swa.windw: did you mean 'window'?"),
    (
        "model.mixers.swa.window=0",
        "swa.window must be at least 1 (a query's own key counts), or None for full",
    ),
    ("model.mixers.swa.head_dim=0", "model.mixers.swa.head_dim must be at least 1, or None, not 0"),
    ("model.mixers.swa.window=1.5", "model.mixers.swa.window must be a whole number, not 1.5"),
    ("model.mixers.swa.kv_heads=3", "model.mixers.swa.kv_heads is 3 and does not divide heads 4"),
    ("model.mixers.full.heads=5", "model.mixers.full.kv_heads is 2 and does not divide heads 5"),
    ("model.mixers.rec.heads=5", "model.mixers.rec.heads is 5 and does not divide the recurrent"),
    ("model.mixers.rec.conv_width=9", "model.mixers.rec.conv_width must lie in 1 to 8, not 9"),
    ("model.mixers.swa.kind='atention'", "model.mixers.swa.kind is 'atention': did you mean 'atte"),
    ("model.mixers.swa.rope.theta=-1", "model.mixers.swa.rope.theta must be positive, not -1"),
    ("model.mixers.swa.rope.fraction=0.04", "model.mixers.swa.rope rotates 1 of 32 dimensions"),
    ("model.mixers.swa.rope=True", "model.mixers.swa.rope must be a mapping of settings"),
    ("model.mixers.new.window=3", "model.mixers.new.kind is missing: valid are: attention, "),
    ("model.mixers.swa=7", "model.mixers.swa must be a mapping with a kind"),
    (
        "model.pattern='swa fulll'",
        "model.pattern names mixer 'fulll', not defined: did you mean 'f",
    ),
    ("model.pattern=''", "model.pattern is empty"),
    ("model.pattern='swa**2'", "model.pattern has 'swa**2': write mixer names"),
    ("model.pattern='swa*0'", "model.pattern has 'swa*0': the count must be at least 1"),
    ("model.depth=0", "model.depth must be at least 1, not 0"),
    ("model.depth='six'", "model.depth must be a whole number, not 'six'"),
    ("model.width=True", "model.width must be a whole number, not True"),
    ("model.width=190", "heads is 4 and does not divide model.width 190"),
    ("model.widht=3", "unknown key model.widht: did you mean 'width'?"),
    ("modle.width=3", "unknown key modle: did you mean 'model'?"),
    ("model.prefix='swa*7'", "model.depth is 6, but prefix and suffix have 7 layers"),
    ("model.block='sandwhich'", "model.block is 'sandwhich' (str): did you mean 'sandwich'?"),
    (
        "model.mlp.kind='relu'",
        "model.mlp.kind is 'relu': did you mean 'plain' with activation='relu'?",
    ),
    (
        "model.logit_soft_cap=-1.0",
        "model.logit_soft_cap must be positive, or None for no cap, not -1.0",
    ),
    ("model.vocab_size=100", "model.vocab_size is 100, and the tokenizer has 258 ids"),
    ("data.sources.addresses.kind='json'", "data.sources.addresses.kind is 'json': did you"),
    ("data.sources={}", "data.sources names no source"),
    ("data.sources.addresses.weight=0", "data.sources.addresses.weight must be positive"),
    ("data.seq_len=0", "data.seq_len must be at least 1, not 0"),
    ("data.batch_size=1.5", "data.batch_size must be a whole number, not 1.5"),
    ("data.tokenizer.kind='hf'", "data.tokenizer.path must name the file of the hf tokenizer"),
    ("data.heldout_fraction=1", "data.heldout_fraction must lie in (0, 1), not 1.0"),
    ("train.accumulate=3", "train.accumulate is 3 and does not divide data.batch_size 8"),
    ("train.steps=0", "train.steps must be at least 1, not 0"),
    ("train.dtype='float16'", "train.dtype is 'float16' (str): did you mean 'bfloat16'?"),
    ("optimizer.lr=0", "optimizer.lr must be positive"),
    ("optimizer.lr='big'", "optimizer.lr must be a number, not 'big'"),
    ("optimizer.name='adamW'", "optimizer.name is 'adamW' (str): did you mean 'adamw'?"),
    ("optimizer.schedule='wsd'", 'optimizer.decay_steps goes with schedule "wsd"'),
    ("optimizer.warmup_steps=100000", "optimizer.warmup_steps is 100000, more than train.steps "),
    ("train.compilation_cache=gs://b/c", "cache is gs://b/c, in a bucket: name a folder of this"),
    ("optimizer={'lr': 1e-3, 'warmup_steps': 5, 'lr': 1e-4}", "has the key 'lr' twice"),
    ("mesh.tensor=0", "mesh.tensor must be at least 1, or -1, not 0"),
    ("mesh.fsdp=-1", "mesh.fsdp is -1, and so is another axis"),
    ("seed=-1", "seed must lie in [0, 2^31), not -1"),
    ("optimizer.lr=1e999", "optimizer.lr must be a finite number, not inf"),
    ("optimizer.lr='1e-3'", "optimizer.lr must be a number, not '1e-3' (str)"),
    (
        "optimizer.eps=1e-38",
        "optimizer.eps must be at least 1.1754943508222875e-38 (smaller ones are 0 in float32), not 1e-38",
    ),
    ("optimizer.eps=1e-46", "optimizer.eps must be at least 1.1754943508222875e-38 (smaller"),
    ("optimizer.eps=0", "optimizer.eps must be at least 1.1754943508222875e-38 (smaller"),
    ("optimizer.b2=1", "optimizer.b2 must lie in [0, 1), not 1.0"),
    ("optimizer.final_lr_fraction=1.5", "optimizer.final_lr_fraction must lie in 0 to 1, not 1.5"),
    ("model.norm_eps=1e-39", "model.norm_eps must be at least 1.1754943508222875e-38 (smaller"),
    (
        "model.mixers.swa.rope={'theta': 1, 'yarn': {'factor': 2, 'length': 64}}",
        "model.mixers.swa.rope.theta must be above 1 with yarn, which divides by its logarithm, not 1.0",
    ),
    (
        "model.mixers.swa.rope={'yarn': {'factor': 0.5, 'length': 64}}",
        "model.mixers.swa.rope.yarn.factor must be at least 1, not 0.5",
    ),
    ("optimizer.muon_lr=0", "optimizer.muon_lr must be positive, or None to take lr, not 0.0"),
    ("model.init_std=-1", "model.init_std must be positive, not -1.0"),
    ("model.z_loss=1e999", "model.z_loss must be a finite number, not inf"),
    (
        "optimizer.lr=" + "1" * 400,
        "optimizer.lr must be a finite number, not a number of 1326 bits",
    ),
    ("model.mlp.hidden=1e30", "model.mlp.hidden must be below 2^31, not 1000000000000000019"),
    ("model.mixers.full.chunk=4294967297", "model.mixers.full.chunk must be below 2^31"),
    (
        "model.width=2147483647",
        "heads is 4 and does not divide model.width 2147483647: use 1, 2147",
    ),
    ("model.depth=1000000000", "model.depth must be at most 10,000, not 1000000000"),
    ("model.pattern='swa*999999999'", "'swa*999999999': there may be 10,000 layers at most"),
    (
        "model.mixers.swa.qk_norm='l1'",
        "swa.qk_norm must be True or False or 'unit_offset' or 'l2' or 'whole', not 'l1' (str)",
    ),
    ("model.pattern=['swa']", "model.pattern must be text, not ['swa'] (list)"),
    ("model.mixers.swa.kind=[1]", "model.mixers.swa.kind is [1]: valid are: attention"),
    ("model.mixers.swa.window=10000000000", "model.mixers.swa.window must be below 2^31"),
    ("data.sources.addresses.text_key=", "data.sources.addresses.text_key is empty"),
    ("train.steps=3000000000", "train.steps must be below 2^31"),
    ("train.steps={[]:1}", "train.steps must be a whole number, not '{[]:1}' (str)"),
    ("train.steps=", "train.steps must be a whole number, not '' (str)"),
    ("=3", "--config. has an empty name in its key"),
    ("sample.prompt=a\udcff", "sample.prompt is not valid UTF-8"),
    ("sample.top_p=0", "sample.top_p must lie in (0, 1], or be None, not 0.0"),
    ("model.width.x=3", "model.width is 128, a value: it has no key x"),
    ("train..steps=3", "--config.train..steps has an empty name in its key"),
]


@pytest.mark.parametrize("override, sentence", BAD, ids=[b[0][:60] for b in BAD])
def test_a_bad_setting_gives_one_sentence_and_exit_code_2(in_root, command, override, sentence):
    words = ["train", "--config", "configs/demo.py", "--dry_run", f"--config.{override}"]
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1, f"more than one line: {err}"


FILES = {
    "missing.py": (None, "which is not a file; valid are"),
    "syntax.py": ("def get_config(:", "cannot be run: SyntaxError"),
    "empty.py": ("x = 1\n", "defines no function get_config(arg)"),
    "value.py": ("get_config = 5\n", "defines no function get_config(arg)"),
    "recipe.txt": ("def get_config(arg=''): ...", "is no Python file: its name must end in .py"),
    "exits.py": ("import sys\nsys.exit(3)\n", "cannot be run: SystemExit: 3"),
    "lines.py": ("raise ValueError('one\\ntwo')\n", "cannot be run: ValueError: one two"),
    "unset.py": (
        "from ml_collections import ConfigDict, config_dict\n"
        "def get_config(arg=''):\n"
        "    return ConfigDict(dict(seed=config_dict.required_placeholder(int)))\n",
        "failed: RequiredValueError",
    ),
    "raises.py": ("def get_config(arg=''):\n    return 1 / 0\n", "failed: ZeroDivisionError"),
    "builtin.py": ("get_config = dict\n", "model is missing"),
    "number.py": ("def get_config(arg=''):\n    return 5\n", "returned 5"),
    "nothing.py": ("def get_config(arg=''):\n    return {}\n", "model is missing"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_recipe_file_gives_one_sentence(tmp_path, name):
    text, sentence = FILES[name]
    (tmp_path / "good.py").write_text("def get_config(arg=''): ...")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        config.load(str(tmp_path / name))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_may_define_a_dataclass(tmp_path):
    """A dataclass whose annotations are strings looks up its module."""
    path = tmp_path / "own.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Size:\n    width: int = 3\n"
        "def get_config():\n    return dict(seed=Size().width)\n"
    )
    assert recipe(str(path)) == {"seed": 3}


def test_an_unknown_recipe_argument_is_refused(in_root):
    with pytest.raises(ConfigError, match="unknown recipe argument 'smoek': valid are: smoke"):
        config.load("configs/demo.py:smoek")


def test_no_device_is_used(root):
    """A bad config is reported even if no device is available; that jax is being loaded, too."""
    program = (
        "import sys; from hybridlm import cli, progress; progress.PATIENCE = 0.05;"
        " sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["train", "--config", "configs/demo.py", "--workdir", "/nonexistent/x"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--config.train.steps=0"],
        capture_output=True,
        text=True,
        cwd=root,
        env={"PATH": "", "JAX_PLATFORMS": "tpu"},
    )
    assert done.returncode == 2
    loading, loaded, said = done.stderr.splitlines()
    assert loading == "loading jax and hybridlm ..."
    assert re.fullmatch(r"loading jax and hybridlm: \S+", loaded)
    assert said == "hybridlm: train.steps must be at least 1, not 0"


def test_overrides_have_two_forms_and_the_last_wins(in_root, capsys):
    words = ["--config.train.steps=77", "--config.train.steps", "78", "--config.model.z_loss=0"]
    code = cli.main(["train", "--config", "configs/demo.py", "--dry_run", *words])
    assert code == 0
    out = capsys.readouterr().out
    assert "in 78 steps" in out
    assert re.search(r"^ +embedding .*\n +0  swa .*(\n.*){4}\n +5  rec .*\n +head", out, re.M)


def test_a_saved_config_reads_back_the_same(in_root):
    first = config.load("configs/demo.py")
    assert config.read(config.to_dict(first)) == first


@pytest.mark.parametrize(
    "text, sentence",
    [("[]", "must be a mapping"), ('{"sed": 1}', "unknown key sed"), ("[" * 10**5, "is damaged")],
)
def test_a_damaged_saved_config_is_named(tmp_path, text, sentence):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"config\.json.* {sentence}"):
        config.read_json(tmp_path / "config.json")
