"""`hybridlm compile`: compiles the training step of a config for chips that are not attached."""

import pathlib
from collections.abc import Callable

import jax

from hybridlm.aot import hlo_largest, measure, remedies, report, saved, topology
from hybridlm.progress import doing
from hybridlm.settings.plain import to_dict
from hybridlm.train.settings import Config
from hybridlm.train.setup import resolve

DOES_NOT_FIT = 1  # exit code


def run(
    config: Config,
    topology_name: str,
    slices: int,
    out: pathlib.Path | None,
    largest: int = 0,
    log: Callable[[str], None] = print,
) -> int:
    """Compiles the step, prints the report, and saves both in `out` if it is given.

    Args:
      largest: how many instructions of a step that compiles are listed, by their HBM traffic.

    Returns:
      The exit code: 0, or 1 if the step does not fit.

    Raises:
      UserError: for an unknown topology, a mesh that does not divide, or a missing compiler.
    """
    jax.config.update("jax_platforms", "cpu")  # jax must not search for the chips
    with doing(f"loading the compiler for {topology_name}"):
        target = topology.find(topology_name, slices)
    config, _ = resolve(config)
    result = measure.compile_step(config, target)
    log(report.text(result, config, target))
    if largest and isinstance(result, measure.Compiled):
        log("\n" + "\n".join(hlo_largest.table(result.step.as_text(), largest)))
    fits = report.fits(result, target)
    tried: list[tuple[remedies.Change, report.Result]] = []
    if not fits:
        tried = remedies.search(
            config, target, lambda r: report.fits(r, target), measure.compile_step, log
        )
        log(report.remedy_text(tried, config, target))
    if out is not None:
        figures = {
            "topology": target.name,
            "slices": slices,
            "chip": target.chip,
            "devices": len(target.devices),
            "jax": jax.__version__,
            "config": to_dict(config),
            "step": report.figures(result, config, target),
            "remedies": [
                {"change": change, **report.figures(r, remedies.apply(config, change), target)}
                for change, r in tried
            ],
        }
        step = result.step if isinstance(result, measure.Compiled) else None
        with doing(f"writing the compiled step to {out}"):
            saved.save(out, figures, step)
        log(f"written to {out}")
    return 0 if fits else DOES_NOT_FIT
