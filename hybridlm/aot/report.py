"""The report of `hybridlm compile`, as text and as JSON."""

from typing import Any

from hybridlm.aot import remedies
from hybridlm.aot.measure import Compiled, TooLarge
from hybridlm.aot.topology import CompileTarget
from hybridlm.train.settings import Config

Result = Compiled | TooLarge


def fits(result: Result, target: CompileTarget) -> bool:
    """Whether the step compiled and needs no more HBM than the chip has."""
    return isinstance(result, Compiled) and result.memory.total <= target.hbm


def figures(result: Result, config: Config, target: CompileTarget) -> dict[str, Any]:
    """All figures for JSON: bytes and seconds, of one chip and one step."""
    known = {"fits": fits(result, target), "compile_seconds": result.compile_seconds}
    if isinstance(result, TooLarge):
        return known | {
            "reason": result.reason,
            "memory": {
                "state": result.state,
                "temporaries": result.temporaries,
                "total": result.total,
                "available": result.available,
            },
        }
    seconds = max(result.roofline)
    peak = target.flops * len(target.devices)
    return known | {
        "lower_seconds": result.lower_seconds,
        "memory": result.memory._asdict() | {"total": result.memory.total, "available": target.hbm},
        "flops": result.cost.flops,
        "model_flops": result.model_flops / len(target.devices),
        "hbm_bytes": result.cost.hbm_bytes,
        "collectives": {k: c._asdict() for k, c in result.cost.collectives.items()},
        "kernels": result.cost.kernels,
        "unknown_loops": result.cost.unknown_loops,
        "roofline": result.roofline._asdict() | {"limit": result.roofline.limit},
        "step_seconds_at_least": seconds,
        "tokens_per_second_at_most": config.tokens_per_step / seconds,
        "mfu_at_most": result.model_flops / (seconds * peak),
    }


def text(result: Result, config: Config, target: CompileTarget) -> str:
    """The report of one step."""
    name = f"{target.name}, {len(target.devices)} devices"
    if isinstance(result, TooLarge):
        return _refused(result, name)
    memory, cost = result.memory, result.cost
    known = figures(result, config, target)
    lines = [
        f"compiled for {name}, in {result.lower_seconds:.0f} s of tracing and"
        f" {result.compile_seconds:.0f} s of compiling",
        "",
        f"HBM of each device  {size(memory.total)} of {size(target.hbm)}"
        f" ({100 * memory.total / target.hbm:.0f}%):"
        f" {'it fits' if known['fits'] else 'IT DOES NOT FIT'}",
        *(f"  {n:<18}{size(b):>10}" for n, b in memory._asdict().items()),
        "",
        f"FLOPs of each device {cost.flops:.4g} a step; the model's own"
        f" {known['model_flops']:.4g}, recomputation not counted",
        "",
        "collectives         in the program   a step    payload       sent, each device a step; beside other"
        " work",
    ]
    for kind, c in cost.collectives.items():
        lines.append(
            f"  {kind:<18}{c.static:>14,}{c.count:>9,}{size(c.payload):>11}{size(c.sent):>11}"
            f"{size(c.overlapped):>11}"
        )
    if not cost.collectives:
        lines.append("  none")
    kernels = ", ".join(f"{n} x {c:,}" for n, c in cost.kernels.items())
    roofline = result.roofline
    lines += [
        "",
        f"kernels             {kernels or 'none: every op runs as XLA compiles it'}",
        "",
        f"a step takes at least {known['step_seconds_at_least']:.4g} s, for {_LIMITS[roofline.limit]}:"
        f" compute {roofline.compute:.4g} s, HBM {roofline.hbm:.4g} s,"
        f" interconnect {roofline.interconnect:.4g} s",
        f"at most {known['tokens_per_second_at_most']:,.0f} tokens/s and an MFU of"
        f" {100 * known['mfu_at_most']:.0f}%",
        "(bounds from data sheets: bfloat16 peak, all links busy, nothing waiting; nothing was timed)",
    ]
    if cost.unknown_loops:
        lines.append(f"{cost.unknown_loops} loops of unknown length were counted once")
    return "\n".join(lines)


_LIMITS = {
    "compute": "its matrix products",
    "hbm": "its traffic with HBM",
    "interconnect": "its collectives",
}


def remedy_text(
    tried: list[tuple[remedies.Change, Result]], config: Config, target: CompileTarget
) -> str:
    """The text about changes: which of them fit, and the memory of each."""
    lines = ["what would make it fit, each compiled:"]
    for change, result in tried:
        total = result.memory.total if isinstance(result, Compiled) else result.total
        verdict = "fits" if fits(result, target) else "does not fit"
        need = f", {size(total)}" if total is not None else ""
        lines.append(f"  {remedies.overrides(change):<50} {verdict}{need}")
    if not tried:
        lines = [
            f"remat is {config.train.remat}, all devices share the parameters, and each has one sequence"
            " at a time:"
        ]
    if not any(fits(result, target) for _, result in tried):
        lines.append(
            "  none of remat, sharding and batch helps alone or together: take more chips, chips"
            f" with more HBM, or a shorter data.seq_len than {config.data.seq_len}"
        )
    return "\n".join(lines)


def _refused(result: TooLarge, name: str) -> str:
    if result.total is None:
        return f"for {name} it DOES NOT FIT: {result.reason}"
    return (
        f"for {name} it DOES NOT FIT: each device needs {size(result.total)}"
        f" (parameters, optimizer and batch {size(result.state)}, temporaries"
        f" {size(result.temporaries)}) and has {size(result.available)}, the compiler says after"
        f" {result.compile_seconds:.0f} s"
    )


def size(count: float) -> str:
    """Bytes as text, in B, KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"
