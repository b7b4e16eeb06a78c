"""The items of a visit, in order of worth. Needs Python's standard library alone.

Numbers and compilation run side by side, before anything is timed; a form is timed only if its numbers
are right. What is timed runs alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu_visit.runner import Item, Phase

KERNEL, XLA = "hybridlm, kernel", "hybridlm, XLA"
CUDNN, CUDNN_PACKED = "cuDNN", "cuDNN, packed"
JLA, FLA = "jax-linear-attention", "flash-linear-attention"
_STATE = (JLA, FLA)
_WINDOW = (CUDNN_PACKED, JLA, CUDNN)
HYBRID_OP = "Native Hybrid Attention, window 512"
#: Ops of `ops.py`, by worth, with the other projects' forms of each.
RIVALS: dict[str, tuple[str, ...]] = {
    "attention, window 512": _WINDOW,
    "delta_rule, gate per head": _STATE,
    "delta_rule, gate per channel": _STATE,
    HYBRID_OP: (),
    "gated_linear, gate per head": _STATE,
    "attention, window 1024": _WINDOW,
    "attention, window 128": _WINDOW,
    "gated_slots": (),
    "gated_linear, gate per channel": _STATE,
    "attention, full": _WINDOW,
    "linear_recurrence, RG-LRU's gate": (),
}
#: Ops that models call beyond those, by worth: other kernels, and other branches of the same. Their kernels'
#: numbers are among the first; their times are among the rest.
MORE: dict[str, tuple[str, ...]] = {
    "attention, window 512, forget gates": (),
    "delta_product, RWKV-7": (JLA,),
    "gated_linear, Mamba-3": (),
    "delta_rule, erase key, gate per channel": (JLA,),
    "gated_linear, Mamba-2": (),
    "attention, window 512, soft cap": (),
    "delta_product, 2 updates": (JLA,),
    "attention, full, forget gates": (FLA,),
    "linear_recurrence, no gate": (),
    "delta_rule, erase key, gate per head": (),
    "attention, window 512, sinks": (),
    "gated_linear, fixed decay": (),
    "delta_rule, no gate": _STATE,
    "attention, window 512 as an array": (),
    "gated_linear, Mamba-3 of rank 4": (),
    "linear_recurrence, RG-LRU's gate, float32": (),
    "linear_recurrence, RG-LRU's gate, bfloat16": (),
    "attention, window 512 after a state": (),
    "gated_slots, after a state": (),
    "attention, window 512, forget gates and soft cap": (),
}
EVERY_OP = RIVALS | MORE
#: Forms that take one document a row only.
ONE_DOCUMENT = (CUDNN, FLA)
LENGTHS = (8192, 32768, 2048, 65536)
MORE_LENGTHS = (8192, 2048, 32768)  # of `MORE`
#: Sizes of the second grid: heads of 64, and as many key heads as query heads.
OTHER_SIZES = (dict(heads=32, kv_heads=8, size=64), dict(heads=16, kv_heads=16, size=128))
#: Sizes of single ops: twice the slots; heads of RWKV-7 and of others where the op is called with those.
_HALF = dict(heads=32, kv_heads=8, size=64)
SIZES_OF_ONE: tuple[tuple[str, dict[str, int]], ...] = (
    (HYBRID_OP, dict(slots=128)),
    ("gated_slots", dict(slots=128)),
    ("delta_product, RWKV-7", _HALF),
    ("delta_rule, erase key, gate per channel", _HALF),
    ("attention, window 512, forget gates", _HALF),
    ("delta_rule, gate per channel", dict(size=64, value_size=128)),
    ("gated_linear, gate per channel", dict(size=64, value_size=128)),
    ("gated_linear, gate per head", dict(heads=4, kv_heads=4, size=256)),
)
_FULL = "attention, full"
#: For each hybrid and each of its ops that has a kernel, the calls whose numbers must be right.
HYBRIDS: dict[str, dict[str, tuple[str, ...]]] = {
    "windowed": dict(attention=("attention, window 1024", _FULL)),
    "gdn": dict(delta_rule=("delta_rule, gate per head",), attention=(_FULL,)),
    "kda": dict(delta_rule=("delta_rule, gate per channel",), attention=(_FULL,)),
    "nha": dict(gated_slots=("gated_slots",), attention=("attention, window 512", _FULL)),
}
ARMS = ("w16-rope", "w512-rope", "gdn-rope", "w512-nope", "w16-nope", "full-rope", "nha16x16-rope")
FIRST_ARMS = 2
#: Real text, by worth; the names at the tiny size of a rehearsal differ.
TEXT_ARMS = ("w16-rope", "w1024-rope", "w1024-nope", "full-rope", "w128-rope", "w128-nope")
SMOKE_TEXT_ARMS = ("w2-rope", "w32-nope")
JOBS = 14
MEASURE, STEPS = "benchmarks.gpu_visit.measure", "benchmarks.gpu_visit.steps"
SMOKE: dict[str, Any] = dict(
    sizes=dict(heads=2, kv_heads=1, size=64, channels=128, slots=64), tokens=128, lengths=(64,)
)


def phases(smoke: bool = False, jobs: int = JOBS) -> tuple[Phase, ...]:
    """The plan.

    Args:
      smoke: tiny sizes, which a CPU can rehearse; kernels are interpreted.
      jobs: processes side by side, for numbers and compilation.
    """
    card = dict(size=256, megabytes=4) if smoke else {}
    first = [(op, form) for op in RIVALS for form in (KERNEL, XLA, *_main_rivals(op))]
    rest = [(op, FLA) for op in RIVALS if FLA in RIVALS[op]]
    rest += [(op, CUDNN) for op in RIVALS if CUDNN in RIVALS[op]]
    checked = sorted(
        first, key=lambda pair: (KERNEL, XLA).index(pair[1]) if "hybrid" in pair[1] else 2
    )
    prepared = [
        *(_numbers(op, form, smoke) for op, form in checked),
        *(_step(name, "compile", smoke) for name in HYBRIDS),
        *(_times(op, form, smoke, compile_only=True) for op, form in first),
        *(_arm(arm, smoke, compile_only=True) for arm in ARMS[:1]),
        *(_numbers(op, KERNEL, smoke) for op in MORE),
    ]
    others = [(op, form, sizes) for op, sizes in SIZES_OF_ONE for form in (KERNEL, XLA)]
    others += [(op, form, s) for s in OTHER_SIZES for op in RIVALS for form in (KERNEL, XLA)]
    further = [(op, form) for op in MORE for form in (KERNEL, XLA, *MORE[op])]
    more = [
        *(_numbers(op, form, smoke) for op, form in rest),
        *(_times(op, CUDNN, smoke, compile_only=True) for op, form in rest if form == CUDNN),
        *(
            _times(op, KERNEL, smoke, packed=False, compile_only=True)
            for op in RIVALS
            if RIVALS[op]
        ),
        *(_step(name, "compile XLA", smoke, xla=True) for name in HYBRIDS),
        *(_numbers(op, form, smoke) for op, form in further if form != KERNEL),
        *(_times(op, form, smoke, compile_only=True) for op, form in further if form != FLA),
    ]
    if not smoke:
        more += [_numbers(op, form, smoke, sizes) for op, form, sizes in others]
        more += [
            _times(op, form, smoke, compile_only=True, sizes=sizes) for op, form, sizes in others
        ]
    last = [
        *(_step(name, "step XLA", smoke, xla=True) for name in HYBRIDS),
        *(_times(op, form, smoke) for op, form in rest),
        *(_times(op, KERNEL, smoke, packed=False) for op in RIVALS if RIVALS[op]),
        *(_times(op, form, smoke) for op, form in further),
        *(_arm(arm, smoke) for arm in ARMS[FIRST_ARMS:]),
    ]
    if not smoke:
        last += [_times(op, form, smoke, sizes=sizes) for op, form, sizes in others]
    text_arms = SMOKE_TEXT_ARMS if smoke else TEXT_ARMS
    return (
        Phase("card", (Item("card", f"{MEASURE}:card", card, 60.0 if smoke else 30.0),), 1, 0.1),
        Phase("numbers and compilation", tuple(prepared), jobs, 0.42),
        Phase("times", tuple(_times(op, form, smoke) for op, form in first), 1, 0.68),
        Phase("steps", tuple(_step(name, "step", smoke) for name in HYBRIDS), 1, 0.84),
        Phase("retrieval", tuple(_arm(arm, smoke) for arm in ARMS[:FIRST_ARMS]), FIRST_ARMS, 1.0),
        Phase("the rest, prepared", tuple(more), jobs, 1.0),
        Phase("the rest", tuple(last), 1, 1.0),
        Phase("real text, prepared", tuple(_text_prepared(smoke)), jobs, 1.0),
        Phase("real text", tuple(_text(arm, smoke) for arm in text_arms), 1, 1.0),
    )


def _main_rivals(op: str) -> tuple[str, ...]:
    return tuple(form for form in RIVALS[op] if form in (CUDNN_PACKED, JLA))


def _name(what: str, op: str, form: str, sizes: dict | None = None, packed: bool = True) -> str:
    words = [what, op, form if packed or form in ONE_DOCUMENT else f"{form}, one document"]
    if sizes:
        words.append(" ".join(f"{k}={v}" for k, v in sizes.items()))
    return " / ".join(words)


def _checked(op: str) -> tuple[int, int]:
    """(tokens, of a document on average) of the comparison with the reference, which holds float64
    states of all tokens in memory; windows must end within documents."""
    if op.startswith("attention"):
        return 2048, 1024
    if op.startswith("delta_product") or op.endswith("rank 4"):  # several states a token
        return (384, 96) if op.startswith("delta") else (192, 48)
    return (1024, 512) if op.startswith("Native") else (768, 96)


def _numbers(op: str, form: str, smoke: bool, sizes: dict | None = None) -> Item:
    given: dict[str, Any] = dict(op=op, form=form, sizes=sizes)
    given |= dict(zip(("tokens", "document"), _checked(op)))
    if smoke:
        given |= dict(sizes=SMOKE["sizes"], tokens=SMOKE["tokens"], document=SMOKE["tokens"] // 4)
    limit = 300.0 if smoke else 150.0
    return Item(_name("numbers", op, form, sizes), f"{MEASURE}:numbers", given, limit)


def _times(
    op: str,
    form: str,
    smoke: bool,
    packed: bool = True,
    compile_only: bool = False,
    sizes: dict | None = None,
) -> Item:
    """The times of a form; they need its right numbers and its compiled programs."""
    lengths = LENGTHS if op in RIVALS else MORE_LENGTHS
    given: dict[str, Any] = dict(op=op, form=form, lengths=lengths, sizes=sizes)
    given |= dict(packed=packed and form not in ONE_DOCUMENT, compile_only=compile_only)
    if smoke:
        given |= dict(lengths=SMOKE["lengths"], sizes=SMOKE["sizes"])
    needs = [_name("numbers", op, form, sizes)]
    if compile_only:
        limit = 300.0 if smoke else 240.0
        name = _name("compile", op, form, sizes, packed)
        return Item(name, f"{MEASURE}:times", given, limit, (*needs,))
    if form != FLA:  # torch's forms compile as they run
        needs.append(_name("compile", op, form, sizes, packed))
    name, limit = _name("times", op, form, sizes, packed), 300.0 if smoke else 100.0
    return Item(name, f"{MEASURE}:times", given, limit, (*needs,))


def _step(name: str, what: str, smoke: bool, xla: bool = False) -> Item:
    """A training step with the kernels whose numbers are right, or with none."""
    given = dict(name=name, xla=xla, smoke=smoke, compile_only=what.startswith("compile"))
    calls = dict.fromkeys(call for needed in HYBRIDS[name].values() for call in needed)
    needs, follows = (), tuple(_name("numbers", call, KERNEL) for call in calls)
    if xla:
        follows = ()
    if not given["compile_only"]:
        needs, follows = (f"{what.replace('step', 'compile')} / {name}",), ()
    limit = 600.0 if smoke else 240.0 if given["compile_only"] else 100.0
    return Item(f"{what} / {name}", f"{STEPS}:step", given, limit, needs, follows)


def _arm(arm: str, smoke: bool, compile_only: bool = False) -> Item:
    given = dict(arm=arm, smoke=smoke, compile_only=compile_only)
    task = "benchmarks.gpu_visit.retrieval:arm"
    if compile_only:
        return Item(f"compile / retrieval, {arm}", task, given, 600.0 if smoke else 150.0)
    return Item(f"retrieval / {arm}", task, given, 600.0)


def _text_prepared(smoke: bool) -> Iterator[Item]:
    """The corpus, and the compiled programs of both kinds of positions."""
    task, limit = "benchmarks.gpu_visit.text", 600.0 if smoke else 300.0
    yield Item("text, corpus", f"{task}:prepare", dict(smoke=smoke), limit)
    for positions in ("rope", "nope"):
        given = dict(positions=positions, smoke=smoke)
        name = f"compile / text, {positions}"
        yield Item(name, f"{task}:compiled", given, limit, ("text, corpus",))


def _text(arm: str, smoke: bool) -> Item:
    """All seeds of an arm."""
    needs = (f"compile / text, {arm.rpartition('-')[2]}",)
    given = dict(arm=arm, smoke=smoke)
    return Item(f"text / {arm}", "benchmarks.gpu_visit.text:arm", given, 600.0, needs)


def names(chosen: Sequence[Phase]) -> Iterator[str]:
    for phase in chosen:
        yield from (item.name for item in phase.items)
