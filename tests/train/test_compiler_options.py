"""Options of XLA reach the compiler of the training step, and a refused one is one sentence."""

import jax
import pytest

from hybridlm import config as configs
from hybridlm.aot import measure, topology
from hybridlm.errors import ConfigError
from hybridlm.runs.workdir import CONFIG, check_same_run
from hybridlm.settings import json_text
from hybridlm.train import setup
from hybridlm.train.settings import CompilerOptions, run_settings

SMALL = [("model.pattern", "swa"), ("model.depth", "1"), ("model.width", "32")]


def load(in_root, options):
    words = [(f"train.compiler_options.{key}", value) for key, value in options.items()]
    return configs.load("configs/demo.py:smoke", [*SMALL, *words])


def test_the_platforms_own_options_reach_the_compiler(in_root, tmp_path):
    """XLA writes the program where it is told to; it does not see options of other platforms."""
    options = {"cpu.xla_dump_to": str(tmp_path), "tpu.xla_unknown": "1", "gpu.xla_unknown": "1"}
    config, tokenizer = setup.resolve(load(in_root, options))
    lowered = setup.lower_step(config, tokenizer.token_bytes(), jax.devices()[:1])
    setup.compile_lowered(lowered)
    assert list(tmp_path.glob("*train_step*.txt"))


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("xla_unknown", "1", "No such compile option: 'xla_unknown'"),
        ("xla_cpu_enable_fast_math", "maybe", "'maybe' is not a valid bool value"),
    ],
)
def test_a_refused_option_is_one_sentence(in_root, name, value, sentence):
    """In `hybridlm compile`, which compiles by the same function as `hybridlm train`."""
    config, _ = setup.resolve(load(in_root, {f"cpu.{name}": value}))
    target = topology.CompileTarget("cpu", "cpu", jax.devices()[:1], 2**30, 1e12, 1e11, 1e10)
    with pytest.raises(ConfigError) as error:
        measure.compile_step(config, target)
    message = str(error.value)
    assert message.startswith("train.compiler_options.cpu ") and "\n" not in message
    assert sentence in message


@pytest.mark.parametrize(
    "platform, field", [("tpu", "tpu"), ("cpu", "cpu"), ("gpu", "gpu"), ("cuda", "gpu")]
)
def test_options_of_a_platform(platform, field):
    options = CompilerOptions(*({"name": n} for n in ("tpu", "gpu", "cpu")))
    assert options.of(platform) == {"name": field}


def test_they_may_change_on_resume(in_root, tmp_path):
    begun = run_settings(load(in_root, {"tpu.xla_a": "1", "tpu.xla_b": "True"}))
    (tmp_path / CONFIG).write_text(json_text.dumps(begun.settings))
    check_same_run(tmp_path, run_settings(load(in_root, {"tpu.xla_a": "2", "cpu.xla_c": "0.5"})))
