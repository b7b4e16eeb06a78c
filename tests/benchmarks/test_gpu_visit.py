"""What a visit measures, as far as a machine without a GPU can run it; its page, its table, its wheels."""

import contextlib
import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks.gpu_visit import __main__ as visit
from benchmarks.gpu_visit import faults, learn, measure, ops, page, plan, rivals, steps
from benchmarks.gpu_visit.plan import KERNEL, XLA
from hybridlm.settings import json_text
from kernels_pallas import dispatch, measured

SIZES = plan.SMOKE["sizes"]
BOTH = (measure.FORWARD, measure.BOTH)


class Records(list):
    """A writer that keeps its records."""

    def write(self, kind, **values):
        self.append(dict(kind=kind, **json.loads(json.dumps(values, allow_nan=False))))


@pytest.fixture
def recurrence(monkeypatch):
    """The recurrence with other projects' forms of it; returns (its name, records)."""

    def wrong():
        return rivals.Rival(lambda log_a, x: 2 * op.ours("chunked", log_a, x, None))

    def good():
        return rivals.Rival(lambda log_a, x: op.ours("chunked", log_a, x, None))

    def fails():
        return rivals.Rival(lambda log_a, x: 1 / 0 if x.shape[1] > 32 else log_a.astype(x.dtype))

    def missing():
        raise ImportError("No module named 'nothing'")

    op = next(op for op in ops.OPS if "recurrence" in op.name)
    forms = dict(wrong=wrong, good=good, fails=fails, missing=missing)
    op = ops.Op(op.name, op.inputs, op.ours, forms, op.flops)
    monkeypatch.setattr(ops, "OPS", (op,))
    monkeypatch.setattr(measure, "SECONDS", 1e-4)
    return op.name, Records()


# --- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoke", [False, True])
def test_the_plan_has_the_ops_and_the_hybrids_and_no_dead_ends(smoke):
    assert {name: set(forms) for name, forms in plan.EVERY_OP.items()} == {
        op.name: set(op.rivals) for op in ops.OPS
    }
    assert set(plan.HYBRIDS) == set(steps.MIXERS)
    phases = plan.phases(smoke)
    names = list(plan.names(phases))
    assert len(set(names)) == len(names)
    for phase in phases:
        before = set(names[: names.index(phase.items[-1].name) + 1])
        for item in phase.items:
            assert before.issuperset((*item.needs, *item.follows)), item
            json.dumps(item.given, allow_nan=False)
    for calls in (call for needed in plan.HYBRIDS.values() for call in needed.values()):
        assert set(calls) <= set(plan.RIVALS)


def test_what_is_timed_is_compiled_before_and_runs_alone():
    for phase in plan.phases():
        for item in phase.items:
            if item.name.startswith(("times", "step")):
                assert phase.jobs == 1
                compiled = any(name.startswith("compile") for name in item.needs)
                assert compiled or plan.FLA in item.name


def test_the_hybrids_have_1_3_billion_parameters_and_calls_that_kernels_cover():
    """Every op that has a kernel for Hopper takes it."""
    from hybridlm import config as configs
    from hybridlm.models.accounting import with_vocab
    from hybridlm.models.mixers import SequenceContext
    from hybridlm.models.params import Model

    for name, needed in plan.HYBRIDS.items():
        config = configs.read(steps.settings(steps.MIXERS[name], smoke=False))
        model = Model.of(with_vocab(config.model, 256))
        assert 1.1e9 < model.count() < 1.6e9
        tokens = jax.ShapeDtypeStruct((1, 1024), np.int32)

        def hidden(params, tokens, model=model):
            context = SequenceContext(tokens, tokens)
            return model.bind(params).hidden(tokens, context, dtype=jax.numpy.bfloat16)

        with measured.table(measured.EVERY_KERNEL), dispatch.kernels_for("gpu"):
            with dispatch.choices() as made:
                jax.eval_shape(hidden, model.abstract, tokens)
        taken = {choice.op for choice in made if choice.backend == "hopper"}
        assert taken == set(needed), name


# --- numbers and times -------------------------------------------------------------------------


def test_right_numbers_pass_and_wrong_ones_do_not(recurrence):
    op, out = recurrence
    for form in (XLA, "good"):
        measure.numbers(out, op, form, SIZES, 48, 12)
    with pytest.raises(measure.WrongNumbers, match="is off by"):
        measure.numbers(out, op, "wrong", SIZES, 48, 12)
    with pytest.raises(ImportError):
        measure.numbers(out, op, "missing", SIZES, 48, 12)
    assert [r["right"] for r in out] == [True, True, False]


def test_an_xla_form_that_is_wrong_is_no_measure_of_itself(recurrence, monkeypatch):
    name, out = recurrence
    (op,) = ops.OPS

    def wrong(impl, *inputs):
        return op.ours(impl, *inputs) * (1.1 if impl == "chunked" else 1)

    monkeypatch.setattr(ops, "OPS", (ops.Op(name, op.inputs, wrong, {}, op.flops),))
    with pytest.raises(measure.WrongNumbers, match="and 3.0e-02 is allowed"):
        measure.numbers(out, name, XLA, SIZES, 16, 8)
    assert [r["right"] for r in out] == [False]


def test_a_kernel_may_round_the_operands_of_its_products_and_no_more(monkeypatch):
    def product(wrong, impl, x, ids):
        kernel = impl == "pallas"
        x = jax.lax.reduce_precision(x, 8, 7) if kernel else x
        return jax.numpy.einsum("bthv,bshv->bths", x, x) * (1 + wrong * kernel)

    monkeypatch.setattr(measure, "ENOUGH", 1e-4)
    for wrong in (0, 0.01):
        form, out = functools.partial(product, wrong), Records()
        op = ops.Op("product", ("v_state",), form, {}, None)
        monkeypatch.setattr(ops, "OPS", (op,))
        with pytest.raises(measure.WrongNumbers) if wrong else contextlib.nullcontext():
            measure.numbers(out, "product", KERNEL, SIZES, 16, 8)
        assert out[0]["right"] == (not wrong) and out[0]["errors"]["out"] > 1e-3


@pytest.mark.slow
def test_an_interpreted_kernel_is_right(recurrence):
    op, out = recurrence
    measure.numbers(out, op, KERNEL, SIZES, 40, 10)
    assert out[0]["right"]


def test_nan_is_wrong(recurrence, monkeypatch):
    op, out = recurrence
    monkeypatch.setattr(faults, "_planted", ("nan", 0))
    with pytest.raises(measure.WrongNumbers, match="is not finite"):
        measure.numbers(out, op, XLA, SIZES, 40, 10)
    assert [r["right"] for r in out] == [False] and out[0]["errors"] == {}


def test_a_length_that_fails_costs_itself_alone(recurrence):
    op, out = recurrence
    with pytest.raises(RuntimeError, match="at 40 tokens ZeroDivisionError"):
        measure.times(out, op, "fails", False, (24, 40, 32), SIZES)
    assert [r["tokens"] for r in out] == [24, 32] and all(r["seconds"] for r in out)
    measure.times(out, op, "fails", False, (40, 16), SIZES, compile_only=True)
    assert [r["tokens"] for r in out if r["kind"] == "compiled"] == [16]


def test_the_work_counts_only_pairs_within_documents():
    op, sizes = ops.by_name()["attention, full"], ops.Sizes(**SIZES)
    inputs = ops.draw(op.inputs, 200, sizes, document=50)
    documents = ops.documents(inputs["segment_ids"])
    packed, whole = (measure.work(op, d, sizes, inputs) for d in (documents, [200]))
    assert len(documents) > 1 and sum(documents) == 200
    flops = 2 * 2 * (200 * 201 // 2) * sizes.heads * sizes.size
    assert whole[measure.FORWARD]["flops"] == flops > packed[measure.FORWARD]["flops"] / 0.8


def test_a_row_of_documents_and_one_document_are_two_forms(recurrence):
    op, out = recurrence
    for packed in (True, False):
        measure.times(out, op, XLA, packed, (16,), SIZES)
    assert [r["form"] for r in out] == [XLA, f"{XLA}, one document"]
    (call,) = out[0]["calls"]
    assert (call["op"], call["backend"], call["tokens"]) == ("gated_recurrence", "chunked", 16)


def test_cudnn_is_given_the_documents_of_a_row():
    ids = jax.numpy.array([[3, 3, 3, 5, 3, 3]])
    begins, lengths = rivals._documents(ids, most=5)
    assert begins.tolist() == [[0, 3, 4, 6, -1, -1]]
    assert lengths.tolist() == [[3, 1, 2, -1, -1]]


# --- the page and the table ----------------------------------------------------------------------


def timed(op, form, tokens, seconds, window=512, **sizes):
    call = dict(op="attention", backend="hopper", tokens=tokens)
    call["case"] = dict(dtype="bfloat16", window=window, vmem_mib=7)
    return {
        "kind": "times",
        "item": "?",
        "op": op,
        "form": form,
        "tokens": tokens,
        "sizes": sizes,
        "seconds": dict.fromkeys(BOTH, seconds),
        "work": dict.fromkeys(BOTH, {"flops": 2e12, "bytes": 1e9}),
        "calls": [call],
    }


def checked(op, right=True, **sizes):
    return dict(kind="numbers", op=op, form=KERNEL, sizes=sizes, errors={"out": 3e-3}, right=right)


ABOUT = [
    dict(kind="versions", date="today", versions={"jax": "0"}),
    dict(kind="card", platform="gpu", chip="NVIDIA H200", facts={"driver_version": "1"}),
    dict(kind="peaks", flops=1e15, bandwidth=4e12),
]


TEXT = dict(
    kind="text",
    arm="w16-nope",
    seed=2,
    step=5,
    steps=6,
    spliced=dict(gain=[1.5, None], accuracy=[0.5, None], tokens=[4, 0]),
    natural=dict(gain=[0.25, None], accuracy=[0.75, None], tokens=[2, 0]),
    plain_nll=3.25,
    heads=[[1, 0, 0.2, 0.1, 2.0], [3, 1, 0.9, 0.8, 1.0]],
    wall_seconds=8.0,
)
TEXT_END = dict(
    kind="text end",
    arm="w16-nope",
    seed=2,
    steps=6,
    restricted=dict(full={"16": 0.1, "512": 0.2}, local={"16": 0.3}),
    masked=dict(none=0.5, top=0.25),
    masked_heads=[[3, 1]],
    needles=dict(nll=[1.25, None], accuracy=[0.125, 0.625]),
    longer=dict(
        plain_nll_within=3.125,
        plain_nll_beyond=3.25,
        spliced=dict(gain=[0.75], accuracy=[None], tokens=[3]),
    ),
)


def ended(item, outcome, why=""):
    return dict(kind="end", item=item, outcome=outcome, why=why, seconds=1.0)


def test_the_page_has_shares_and_says_what_failed_and_what_has_not_run():
    records = [
        *ABOUT,
        checked("gated_slots"),
        checked("attention, full", right=False),
        timed("attention, full", KERNEL, 2048, 4e-3),
        timed("attention, full", XLA, 2048, 8e-3),
        dict(
            kind="step",
            name="gdn",
            kernels=[],
            parameters=13e8,
            tokens=10,
            seconds=2.0,
            spread=[1.9, 2.1],
            mfu=0.4567,
            memory=None,
            peak="sheet",
        ),
        dict(
            kind="retrieval",
            arm="w16-rope",
            step=3,
            steps=9,
            accuracy=[1, 0.5],
            mass=0.25,
            local_nll=1.3,
            seconds=7.0,
        ),
        TEXT,
        TEXT_END,
        ended("a", "died", "killed by SIGSEGV"),
        ended("b", "done"),
    ]
    text = page.render(records, ["a", "b", "c"])
    assert f"| {KERNEL} | 4.000 (50%) |" in text and f"| {XLA} | 8.000 (25%) |" in text
    assert f"| gated_slots | {KERNEL} | 3.0e-03 (out) | right |" in text and "**wrong**" in text
    assert "| gdn | 1.30B | none | 2.000 (1.900 to 2.100) | 5 | 45.7% |  |" in text
    assert (
        "| w16-nope | 2 | 5 of 6 | 1.50 - | 0.50 - | 0.25 - | 0.75 - | 3.1 0.90, 1.0 0.20 | 3.250 | 8 |"
    ) in text
    assert (
        "| w16-nope | 2 | 3.1 | none 0.50, top 0.25 | 16 0.10, 512 0.20 | 16 0.30 |" in text
    )  # masked, restricted
    assert "| w16-nope | 2 | 0.12 0.62 | 1.25 - |" in text  # needles
    assert "| w16-nope | 2 | 3.125 3.250 | 0.75 | - |" in text  # twice the length
    assert "| w16-rope | 3 of 9 | 1.00 0.50 | 0.25 | 1.300 | 7 |" in text
    assert "- a: died. killed by SIGSEGV" in text and text.rstrip().endswith("- c")
    assert page.render([], ["c"]).count("- c") == 1  # a visit without any result


def test_the_page_compares_with_the_aims_at_the_worst_length():
    window, slots, both = "attention, window 512", "gated_slots", plan.HYBRID_OP
    records = [
        timed(window, KERNEL, 2048, 1e-3),
        timed(window, KERNEL, 8192, 2e-3),
        timed(window, plan.CUDNN_PACKED, 2048, 2e-3),
        timed(window, plan.CUDNN_PACKED, 8192, 1e-3),
        timed(slots, KERNEL, 2048, 1e-3),
        timed(both, KERNEL, 2048, 2.4e-3),
    ]
    text = page.render(records)
    assert f"| {window}: as fast as cuDNN, packed | >= 1.00 | 0.50 | missed |" in text
    assert f"| {both}: times its parts | <= 1.30 | 1.20 | met |" in text


def test_the_table_has_a_kernel_where_it_is_right_and_faster():
    won, lost, wrong = "attention, window 512", "attention, window 2048", "attention, window 128"
    records = [*ABOUT, checked(won), checked(lost), checked(wrong, right=False)]
    speeds = {2048: 2.0, 8192: 1.5, 32768: 1.01, 65536: 3.0}
    for op, window in ((won, 512), (lost, 2048), (wrong, 128)):
        for tokens, speedup in speeds.items():
            speedup = 0.5 if op == lost else speedup
            records += [
                timed(op, KERNEL, tokens, 1e-3, window),
                timed(op, XLA, tokens, speedup * 1e-3, window),
            ]
    short, long = learn.rows(records)
    assert short.tokens == (1024, 16383) and long.tokens == (46341, 131072)
    assert short.speedup == 1.5 and long.speedup == 3.0 and short.chip == "NVIDIA H200"
    assert (
        short.case["window"] == {"from": 256, "to": 1023} and short.case["vmem_mib"] == measured.ANY
    )

    def taken(window, tokens):
        case = dict(dtype="bfloat16", window=window, vmem_mib=99)
        with measured.table((short, long)), dispatch.kernels_for("gpu", chip="NVIDIA H200"):
            return dispatch.resolve("attention", "auto", case, support, tokens)

    limits = dict.fromkeys(("platform", "dtype", "window", "vmem_mib"), dispatch.ANY)
    support = (*dispatch.XLA_ONLY, dispatch.Backend("hopper", "pallas", limits, auto=False))
    assert taken(512, 2048) == taken(600, 4096) == taken(512, 65536) == "hopper"
    assert taken(512, 32768) == taken(2048, 2048) == taken(None, 2048) == "chunked"


def test_a_table_is_made_from_one_gpu_only():
    for cards in ([], [dict(ABOUT[1], platform="cpu")], [ABOUT[1], dict(ABOUT[1], chip="H100")]):
        with pytest.raises(ValueError, match="one kind of GPU"):
            learn.rows([ABOUT[0], *cards])
    assert learn.rows(ABOUT) == []


def test_a_window_in_an_op_of_several_is_not_in_the_table():
    """Native Hybrid Attention's time says nothing of its parts."""
    record = timed("both", KERNEL, 2048, 1e-3)
    record["calls"].append(dict(record["calls"][0], op="gated_slots"))
    assert learn.rows([*ABOUT, checked("both"), record, timed("both", XLA, 2048, 1.0)]) == []


def test_a_length_is_that_of_the_kernels_call_and_the_slowest_of_a_class_counts():
    """Two ops with calls of one class, of which one has two steps a token."""
    one, two = timed("one", KERNEL, 8192, 1e-3), timed("two", KERNEL, 4096, 1e-3)
    two["calls"][0]["tokens"] = 8192
    others = [timed("one", XLA, 8192, 3e-3), timed("two", XLA, 4096, 2e-3)]
    records = [*ABOUT, checked("one"), checked("two"), one, two, *others]
    (row,) = learn.rows(records)
    assert row.tokens == (4096, 16384) and row.speedup == 2.0


def test_a_class_of_which_one_call_is_wrong_is_not_in_the_table():
    wrong = checked("two", right=False) | dict(calls=timed("two", KERNEL, 96, 1.0)["calls"])
    records = [
        *ABOUT,
        checked("one"),
        timed("one", KERNEL, 8192, 1.0),
        timed("one", XLA, 8192, 3.0),
    ]
    assert len(learn.rows(records)) == 1 and learn.rows([*records, wrong]) == []
    wrong["calls"][0]["case"]["window"] = 128  # another class
    assert len(learn.rows([*records, wrong])) == 1


def test_a_step_takes_only_kernels_whose_numbers_are_right():
    right = [checked("attention, full"), checked("delta_rule, gate per head")]
    assert steps.right_kernels("gdn", right) == ["delta_rule", "attention"]
    assert steps.right_kernels("kda", right) == ["attention"]
    assert steps.right_kernels("windowed", right) == []
    assert steps.right_kernels("gdn", [checked("attention, full", right=False)]) == []


@pytest.fixture
def few_measurements(monkeypatch):
    """Makes the measurements of a retrieval run take seconds."""
    from experiments.large_window_laziness import measure as measurements

    for name, value in dict(EACH=8, PROMPTS=2, FAR_TOKENS=6, AT_ONCE=256).items():
        monkeypatch.setattr(measurements, name, value)
    cached = (measurements._held_out, measurements.needles, measurements.far_sequences)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.slow
def test_a_retrieval_run_is_recorded_and_nan_ends_it(few_measurements, tmp_path, monkeypatch):
    """Once more after its end, it is done at once."""
    from benchmarks.gpu_visit import retrieval

    out = Records()
    out.path = tmp_path / "results.jsonl"
    for _ in range(2):
        retrieval.arm(out, "w512-rope", smoke=True, compile_only=False)
    assert [(r["step"], r["arm"], r["steps"]) for r in out] == [
        (s, "w32-rope", 5000) for s in (0, 2)
    ]
    assert all(r["local_nll"] > 0 and 0 <= r["mass"] <= 1 and r["accuracy"] for r in out)
    monkeypatch.setattr(faults, "_planted", ("nan", 0))
    with pytest.raises(FloatingPointError, match="not finite at step 0"):
        retrieval.arm(out, "w16-rope", smoke=True, compile_only=False)


@pytest.mark.slow
def test_an_arm_on_real_text_is_prepared_and_recorded_and_nan_ends_it(tmp_path, monkeypatch):
    from benchmarks.gpu_visit import text

    out = Records()
    out.path = tmp_path / "results.jsonl"
    prepared, named = (
        [i for p in plan.phases(True) if p.name == name for i in p.items]
        for name in ("real text, prepared", "real text")
    )
    for item in [*prepared[:2], named[0]]:
        module, function = item.task.split(":")
        assert module == text.__name__
        getattr(text, function)(out, **item.given)
    assert [r["kind"] for r in out] == ["text corpus", "compiled", *["text"] * 2, "text end"]
    curve = [r for r in out if r["kind"] == "text"]
    assert [r["step"] for r in curve] == [0, 2]
    folder = tmp_path / "text" / plan.SMOKE_TEXT_ARMS[0] / "0"
    (end,) = (r for r in out if r["kind"] == "text end")
    lines = (folder / "curve.jsonl").read_text().splitlines()
    for record, whole in (
        *zip(curve, map(json_text.loads, lines), strict=True),
        (end, json_text.loads((folder / "done.json").read_text())["end"]),
    ):
        assert {k: record[k] for k in whole} == text._finite(whole)  # nothing stays on the machine
    assert {"restricted", "masked", "masked_heads", "needles", "longer"} <= set(end)
    assert {"spliced", "natural", "plain_nll", "heads"} <= set(curve[0])
    made = page.render(out)
    assert "Needles, by distance" in made and "At twice the training length" in made
    monkeypatch.setattr(faults, "_planted", ("nan", 0))
    with pytest.raises(FloatingPointError, match="not finite at step 0"):
        text.arm(out, plan.SMOKE_TEXT_ARMS[1], smoke=True)


def test_the_arms_on_real_text_are_those_of_the_experiment():
    from benchmarks.gpu_visit.text import SMOKE
    from experiments.large_window_laziness.text.arms import TEXT, arms

    assert plan.TEXT_ARMS == tuple(arm.name for arm in arms(TEXT))
    assert set(plan.SMOKE_TEXT_ARMS) <= {arm.name for arm in arms(SMOKE)}


# --- the command ---------------------------------------------------------------------------------


def test_a_fault_needs_an_item_of_the_plan():
    assert visit.faults_of(["card=nan"], ["card"]) == dict(card="nan")
    with pytest.raises(SystemExit, match="no item 'cart'"):
        visit.faults_of(["cart=nan"], ["card"])


def test_the_parent_needs_the_standard_library_alone(root):
    """No missing or broken package can end the run."""
    program = "import sys; sys.path.insert(0, '.'); import benchmarks.gpu_visit.__main__"
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
