"""Finds changes of settings that make a step fit, by compiling each of them."""

import dataclasses
from collections.abc import Callable, Iterator

from hybridlm.aot.measure import Compiled, TooLarge
from hybridlm.aot.topology import CompileTarget
from hybridlm.parallel import mesh as meshes
from hybridlm.train.settings import Config

Change = dict[str, object]


def changes(config: Config, devices: int) -> Iterator[Change]:
    """Changes that save memory and keep the loss: the cheapest first, all together last."""
    found: list[Change] = []
    if config.train.remat == "none":
        found.append({"train.remat": "dots"})
    if config.train.remat in ("none", "dots"):
        found.append({"train.remat": "full"})
    layout = config.model.layout
    if config.train.remat == "full" and layout.repeats > 1 and len(layout.unit) > 1:
        found.append({"train.remat": "unit"})
    sizes = dict(zip(meshes.AXES, meshes.mesh_shape(config.mesh, devices)))
    if sizes["data"] > 1:
        found.append({"mesh.data": 1, "mesh.fsdp": sizes["data"] * sizes["fsdp"]})
    ways = sizes["data"] * sizes["fsdp"] * sizes["expert"]
    rows = config.data.batch_size // config.train.accumulate // ways
    if rows > 1:  # the same batch in micro-batches of one sequence per device
        found.append({"train.accumulate": config.train.accumulate * rows})
    yield from found
    if len(found) > 1:
        yield {key: value for change in found for key, value in change.items()}


def apply(config: Config, change: Change) -> Config:
    """`config` with a change applied, e.g. {"train.remat": "full"}."""
    for key, value in change.items():
        part, field = key.split(".")
        inner = dataclasses.replace(getattr(config, part), **{field: value})
        config = dataclasses.replace(config, **{part: inner})
    return config


def overrides(change: Change) -> str:
    """The change as command-line overrides."""
    return " ".join(f"--config.{key}={value}" for key, value in change.items())


def search(
    config: Config,
    target: CompileTarget,
    fits: Callable[[Compiled | TooLarge], bool],
    compile_step: Callable[[Config, CompileTarget], Compiled | TooLarge],
    log: Callable[[str], None],
) -> list[tuple[Change, Compiled | TooLarge]]:
    """Compiles each change; compiles all together only if none alone fits."""
    tried: list[tuple[Change, Compiled | TooLarge]] = []
    listed = list(changes(config, len(target.devices)))
    for change in listed:
        together = change is listed[-1] and len(listed) > 2
        if together and any(fits(result) for _, result in tried):
            break
        log(f"compiling with {overrides(change)}")
        tried.append((change, compile_step(apply(config, change), target)))
    return tried
