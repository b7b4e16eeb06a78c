"""The lm-evaluation-harness adapter with a tiny model, through the harness's own interface.

Where the harness is not installed, a stand-in has the two classes that the adapter derives from or
reads, and only what the harness itself computes is not tested.
"""

import importlib
import importlib.util
import pathlib
import sys
import types
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
import small

import hybridlm.evals
from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.errors import UserError
from hybridlm.models.mixers import SequenceContext
from hybridlm.runs import OpenedModel

LENGTH = 96
INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(
    not INSTALLED, reason="lm-evaluation-harness (lm_eval) is not installed"
)


class Instance(NamedTuple):
    """A request as the harness makes it; the adapter reads `args`."""

    request_type: str
    doc: dict[str, Any]
    arguments: tuple
    idx: int

    @property
    def args(self) -> tuple:
        return self.arguments


def adapter(patch):
    """`hybridlm.evals.harness`, imported over the stand-in where the harness is not installed."""
    name = "hybridlm.evals.harness"
    if INSTALLED:
        return importlib.import_module(name)
    api = types.ModuleType("lm_eval.api")
    utils = types.ModuleType("lm_eval.utils")
    instance, model = (types.ModuleType(f"lm_eval.api.{n}") for n in ("instance", "model"))
    instance.Instance, model.LM = Instance, type("LM", (), {})
    top = types.ModuleType("lm_eval")
    top.api, top.utils = api, utils
    for module in (top, api, utils, instance, model):
        patch.setitem(sys.modules, module.__name__, module)
    try:
        return importlib.import_module(name)
    finally:
        sys.modules.pop(name, None)  # others find that the harness is missing
        vars(hybridlm.evals).pop("harness", None)


@pytest.fixture(scope="module")
def harness():
    model, params = small.make(small.model_config("swa full rec", vocab_size=264))
    folder = pathlib.Path("model")
    opened = OpenedModel(folder, model, params, ByteTokenizer(), 1, {"length": LENGTH}, None)
    with pytest.MonkeyPatch.context() as patch:
        return adapter(patch).HarnessModel(opened, batch=3)


@pytest.fixture(scope="module")
def log_probs(harness):
    """ln p of every next token, by direct computation."""
    model, params = harness.opened.model, harness.opened.params
    positions = np.arange(LENGTH, dtype=np.int32)[None]
    forward = jax.jit(lambda t, ids: model.bind(params)(t, SequenceContext(ids, positions))[0])

    def run(tokens):
        row, ids = np.zeros((2, 1, LENGTH), np.int32)
        row[0, : len(tokens)], ids[0, : len(tokens)] = tokens, 1
        return np.asarray(jax.nn.log_softmax(forward(row, ids)))[: len(tokens)]

    return run


def requests(kind, *arguments):
    made = Instance
    if INSTALLED:
        made = importlib.import_module("lm_eval.api.instance").Instance
    return [made(kind, {}, args, i) for i, args in enumerate(arguments)]


def test_loglikelihood(harness, log_probs):
    """Results for pairs of many lengths equal sums over the forward pass, in request order."""
    pairs = [("One two", " three"), ("", "x"), ("abc ", "d"), ("q" * 200, "longer than fits")]
    found = harness.loglikelihood(requests("loglikelihood", *pairs))
    tokenizer = ByteTokenizer()
    for (context, continuation), (log_p, greedy) in zip(pairs, found):
        bare = context.rstrip()  # its last spaces belong to the continuation, as in the harness
        answer = tokenizer.encode(context[len(bare) :] + continuation)
        kept = tokenizer.encode(bare)[-(LENGTH - 1 - len(answer)) :]
        whole = np.concatenate([[tokenizer.bos_id], kept, answer]).astype(int)
        table = log_probs(whole)
        places = np.arange(len(whole) - len(answer) - 1, len(whole) - 1)
        assert log_p == pytest.approx(table[places, answer].sum(), rel=1e-4, abs=1e-3)
        assert greedy == bool((table[places].argmax(-1) == answer).all())


def test_a_missing_harness_is_one_sentence(monkeypatch):
    monkeypatch.delitem(sys.modules, "hybridlm.evals.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"not installed: pip install 'hybridlm\[eval\]'"):
        importlib.import_module("hybridlm.evals.harness")


def test_help_names_choices_types_and_defaults(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        adapter(monkeypatch).main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(raw, ema; default: raw)" in said and "(whole number, at least 1; default: 8)" in said
    assert "(path)" in said and "None" not in said


@pytest.mark.parametrize("context", ["", "abc", "abc  "])
def test_an_empty_continuation_is_refused(harness, context):
    """Spaces at the end of the context, which count to the continuation, do not fill it."""
    with pytest.raises(UserError, match="is empty"):
        harness.loglikelihood(requests("loglikelihood", ("fine", "fine"), (context, "")))


@needs_lm_eval
def test_rolling_loglikelihood_sums_over_windows(harness, log_probs):
    tokenizer, text = ByteTokenizer(), "The road is long. " * 15
    short = "Nothing."
    found = harness.loglikelihood_rolling(requests("loglikelihood_rolling", (text,), (short,)))
    ids = tokenizer.encode(short)
    whole = np.concatenate([[tokenizer.bos_id], ids])
    want = log_probs(whole)[np.arange(len(ids)), ids].sum()
    assert found[1] == pytest.approx(want, rel=1e-4)
    assert found[0] < found[1] and np.isfinite(found[0])


def test_generation_is_greedy_and_stops(harness, log_probs):
    """Batched decoding equals the argmax for each prompt alone, cut at the first `until`."""
    tokenizer = harness.opened.tokenizer
    prompts = ["One", "Another, longer", "x"]
    settings = {"until": [], "max_gen_toks": 6}
    made = harness.generate_until(requests("generate_until", *((p, settings) for p in prompts)))
    for prompt, text in zip(prompts, made):
        tokens, chosen = [tokenizer.bos_id, *tokenizer.encode(prompt)], []
        for _ in range(6):
            scores = log_probs(tokens)[-1].copy()
            scores[258:] = scores[256] = -np.inf
            if scores.argmax() == tokenizer.eos_id:
                break
            chosen.append(int(scores.argmax()))
            tokens.append(chosen[-1])
        assert text == tokenizer.decode(chosen)
    stop = made[1][2:3]
    cut = harness.generate_until(
        requests("generate_until", (prompts[1], {"until": [stop], "max_gen_toks": 6}))
    )
    assert cut == [made[1].split(stop)[0]]


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"do_sample": True, "temperature": 0.7}, "sampling.*only greedy"),
        ({"num_beams": 4}, "4 beams.*only greedy"),
        ({"max_gen_toks": LENGTH}, "new tokens"),
    ],
)
def test_unsupported_generation_settings_are_refused(harness, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        harness.generate_until(requests("generate_until", ("a", settings)))


@needs_lm_eval
def test_the_harness_runs_a_task_on_the_adapter(harness, tmp_path):
    """`simple_evaluate` on a task of our own gives the accuracy of the adapter's scores."""
    import json

    import lm_eval
    from lm_eval.tasks import TaskManager

    lines = [{"q": f"{i} and {i}", "a": " yes", "b": " no", "gold": i % 2} for i in range(6)]
    data = tmp_path / "lines.jsonl"
    data.write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "tiny.yaml").write_text(
        f"""task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: gold
target_delimiter: ""
doc_to_choice: ["{{{{a}}}}", "{{{{b}}}}"]
metric_list: [{{metric: acc}}]
"""
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        harness, tasks=["tiny_choice"], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    right = []
    for sample in found["samples"]["tiny_choice"]:
        given = (
            [(a["arg_0"], a["arg_1"]) for a in sample["arguments"].values()]
            if isinstance(sample["arguments"], dict)
            else [tuple(a) for a in sample["arguments"]]
        )
        scores = [score for score, _ in harness.loglikelihood(requests("loglikelihood", *given))]
        right.append(int(np.argmax(scores)) == sample["target"])
    assert len(right) == len(lines)
    assert found["results"]["tiny_choice"]["acc,none"] == pytest.approx(np.mean(right))
