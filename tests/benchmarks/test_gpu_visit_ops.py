"""A visit checks every Hopper kernel that the package has, and counts its work exactly."""

import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
from benchmarks.gpu_visit import measure, ops, plan
from benchmarks.gpu_visit.plan import KERNEL, XLA
from kernels_pallas import dispatch
from kernels_pallas.aot import cases

TOKENS = 1024


class Resolved(Exception):
    """An op asked for its backend; nothing more of it is traced."""


def hopper_rows() -> dict[str, dispatch.Backend]:
    """By module of the package, its row for GPUs."""
    names = [m.name for m in pkgutil.iter_modules(kernels_pallas.__path__)]
    modules = {name: importlib.import_module(f"kernels_pallas.{name}") for name in names}
    return {
        name: row
        for name, module in modules.items()
        for row in getattr(module, "SUPPORT", ())
        if "gpu" in (row.limits or {}).get("platform", ())
    }


@pytest.fixture
def calls_of(monkeypatch):
    """A function that returns (kernel, its features) of the first op that a function calls. A kernel is
    known by its row's module; its features are those of which the row lists the values one by one."""
    rows = hopper_rows()

    def stop(op_name, impl, case, support=(), tokens=None):
        assert impl == "pallas"
        (name,) = (n for n, row in rows.items() if any(row is one for one in support))
        assert not rows[name].uncovered(case | dict(platform="gpu")), (op_name, case)
        raise Resolved(name, frozenset((f, case[f]) for f in listed(rows[name])))

    monkeypatch.setattr(dispatch, "resolve", stop)

    def call(function, *arrays):
        with pytest.raises(Resolved) as raised, dispatch.kernels_for("gpu"):
            jax.eval_shape(function, *arrays)
        return raised.value.args

    return call


def listed(row: dispatch.Backend) -> list[str]:
    limits = row.limits.items()
    return [f for f, values in limits if isinstance(values, tuple) and f != "platform"]


def checked() -> dict[str, tuple[str, ops.Sizes]]:
    """By item, the op and the sizes of all numbers of kernels in the plan."""
    given = {i.name: i.given for phase in plan.phases() for i in phase.items}
    return {
        name: (g["op"], ops.Sizes(**(g["sizes"] or {})))
        for name, g in given.items()
        if name.startswith("numbers / ") and g["form"] == KERNEL
    }


def visited(calls_of, op: ops.Op, sizes: ops.Sizes):
    values = [jax.eval_shape(lambda n=n: ops._input(n, TOKENS, sizes, 0)) for n in op.inputs]
    ids = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)
    return calls_of(lambda *inputs: op.ours("pallas", *inputs), *values, ids)


def forgotten(calls_of, calls: set) -> list[str]:
    """What the package registers and no call of a visit has: a value of a kernel's feature, and a case of
    the scorecard."""
    missing = [
        f"{name}: {feature}={value}"
        for name, row in hopper_rows().items()
        for feature in listed(row)
        for value in row.limits[feature]
        if not any(kernel == name and (feature, value) in found for kernel, found in calls)
    ]
    for case in cases.by_name().values():
        if "cuda" in case.platforms:
            arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in case.arguments]
            if calls_of(case.function, *arrays) not in calls:
                missing.append(case.name)
    return missing


def test_no_hopper_kernel_is_forgotten(calls_of):
    """A visit's plan has numbers for each; without the ops with an erase key it would not."""
    by_name = ops.by_name()
    calls = {item: visited(calls_of, by_name[op], sizes) for item, (op, sizes) in checked().items()}
    assert forgotten(calls_of, set(calls.values())) == []
    assert {kernel for kernel, _ in calls.values()} == set(hopper_rows())
    fewer = {call for item, call in calls.items() if "erase" not in item and "RWKV" not in item}
    missing = forgotten(calls_of, fewer)
    assert "delta_rule: erase=True" in missing
    assert "delta_rule erase key, channel gate, Hopper" in missing


def test_what_is_checked_is_timed_beside_the_xla_form():
    """So that `learn` can compare them."""
    names = set(plan.names(plan.phases()))
    for item in checked():
        rest = item.removeprefix("numbers / ")
        assert {f"times / {rest}", f"times / {rest.replace(KERNEL, XLA)}"} <= names, item


def test_the_first_numbers_are_of_every_kernel_at_its_usual_sizes():
    numbers = next(p for p in plan.phases() if p.name == "numbers and compilation")
    first = {i.given["op"] for i in numbers.items if i.given.get("form") == KERNEL}
    assert first == set(plan.EVERY_OP) == set(ops.by_name())


def test_a_state_makes_every_query_of_the_first_document_see_a_window():
    sizes = ops.Sizes(heads=2, size=64)
    lengths = [700, 100, 900]
    seen = 512 * 700 + sum(min(i + 1, 512) for n in lengths[1:] for i in range(n))
    forward, both = ops.by_name()["attention, window 512 after a state"].flops(lengths, sizes)
    assert forward == 2 * 2 * seen * sizes.heads * sizes.size and both == 3.5 * forward


@pytest.mark.parametrize("name", plan.MORE)
@pytest.mark.slow
def test_the_chunked_form_of_the_other_ops_is_right_with_and_without_documents(name):
    """The interpreted kernels are compared with it by a rehearsal."""
    op, sizes = ops.by_name()[name], ops.Sizes(**plan.SMOKE["sizes"])
    inputs = ops.draw(op.inputs, 48, sizes, document=12)
    for ids in (inputs["segment_ids"], None):
        want = measure.reference(op, inputs, ids)
        found = measure.gradients(measure.with_ids(op, "chunked", ids), op, inputs)
        off = measure.errors(found, want)
        assert max(off.values()) < 1e-2 and all(np.isfinite(x).all() for x in found.values()), off
