"""The parameters of a model by name, as settings such as `optimizer.freeze` write them."""

from collections.abc import Iterable

from hybridlm.models.params import Model
from hybridlm.settings import globs


def table(model: Model, freeze: str = "") -> list[str]:
    """A line for each parameter, with layers that are alike in one: name, shape, layers.

    Args:
      freeze: globs over names; frozen parameters are marked.
    """
    named = model.by_name(model.abstract)
    frozen = set(globs.select(freeze, named, "optimizer.freeze"))
    alike: dict[tuple[str, tuple[int, ...], bool], list[int]] = {}
    for name, x in named.items():
        parts = name.split(".")
        layer = [int(parts[1])] if parts[0] == "layers" else []
        pattern = ".".join(["layers", "N", *parts[2:]]) if layer else name
        alike.setdefault((pattern, tuple(x.shape), name in frozen), []).extend(layer)
    width = max(len(pattern) for pattern, *_ in alike)
    lines = []
    for (pattern, shape, fixed), layers in alike.items():
        size = " x ".join(f"{n:,}" for n in shape)
        marks = [f"N = {_ranges(layers)}"] * bool(layers) + ["frozen"] * fixed
        lines.append(f"{pattern:<{width}}  {size:<18}  {', '.join(marks)}".rstrip())
    return lines


def _ranges(numbers: Iterable[int]) -> str:
    """ "0-3, 7" of 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
