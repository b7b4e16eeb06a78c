"""How much of each source a run reads: what was seen, and limits on repetition.

Both follow from the weights, the sizes of the sources and the number of steps alone.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from hybridlm.data.mixture import integer_weights, taken
from hybridlm.data.settings import DataConfig
from hybridlm.data.source import SourceConfig
from hybridlm.errors import ConfigError


class Seen(NamedTuple):
    """What a run has read of one source.

    Attributes:
      asked: the source's share of the weights.
      share: its share of the sequences that were read.
      sequences: packed sequences read.
      epochs: sequences read, over the source's training sequences.
      documents, tokens: epochs times those of the source; exact where an epoch ends.
    """

    name: str
    asked: float
    share: float
    sequences: int
    epochs: float
    documents: float
    tokens: int

    def cells(self) -> list[str]:
        """The figures as text: shares, sequences, documents, tokens, epochs."""
        shares = [f"{self.asked:.2%}", f"{self.share:.2%}"]
        documents = f"{self.documents:,.0f}" if self.documents >= 100 else f"{self.documents:.3g}"
        return [*shares, f"{self.sequences:,}", documents, f"{self.tokens:,}", f"{self.epochs:.3g}"]

    def text(self) -> str:
        """One line without the name; shares only where there are other sources."""
        asked, share, sequences, documents, tokens, epochs = self.cells()
        of_all = "" if self.asked == 1 else f", {share} of all sequences ({asked} asked)"
        return (
            f"{epochs} epochs: {tokens} tokens of {documents} documents in {sequences} sequences"
            f"{of_all}"
        )


def seen(data: DataConfig, sources: Mapping[str, Any], steps: int) -> list[Seen]:
    """What the first `steps` steps read of each source, in the order of the names.

    Args:
      data: the settings that the run was made with.
      sources: by name, as `Pipeline.counts` describes them and a run records them.

    Returns:
      A row for each source; none if `sources` are not those of `data`.
    """
    names = sorted(sources)
    if names != sorted(data.sources) or any("windows" not in sources[n]["train"] for n in names):
        return []
    weights = integer_weights([data.sources[name].weight for name in names])
    counts, total = taken(steps * data.batch_size, weights), sum(weights)
    rows = []
    for name, weight, count in zip(names, weights, counts):
        train = sources[name]["train"]
        epochs = Fraction(count, train["windows"])
        rows.append(
            Seen(
                name,
                weight / total,
                count / max(sum(counts), 1),
                count,
                float(epochs),
                float(epochs * train["documents"]),
                round(epochs * train["tokens"]),
            )
        )
    return rows


def check_epochs(
    sources: Mapping[str, SourceConfig], windows: Mapping[str, int], steps: int, batch_size: int
) -> None:
    """Checks that `steps` steps read no source more often than its `max_epochs`.

    Args:
      windows: training sequences of each source.

    Raises:
      ConfigError: with the steps that the weights allow, and with weights that would fit.
    """
    names = sorted(sources)
    limits = {
        name: math.floor(Fraction(str(source.max_epochs)) * windows[name])
        for name, source in sources.items()
        if source.max_epochs is not None
    }
    weights = integer_weights([sources[name].weight for name in names])

    def fits(count: int, weights: tuple[int, ...]) -> bool:
        counts = zip(names, taken(count, weights))
        return all(count <= limits.get(name, count) for name, count in counts)

    total = steps * batch_size
    if fits(total, weights):
        return
    low, high = 0, steps  # the largest number of steps that fits, by bisection
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * batch_size, weights) else (low, middle)
    over = [
        f"{name} {count / windows[name]:.3g} times (max_epochs {sources[name].max_epochs:g})"
        for name, count in zip(names, taken(total, weights))
        if count > limits.get(name, count)
    ]
    fitting = _fitting_weights(dict(zip(names, weights)), limits, total)
    if fitting and fits(total, integer_weights([fitting[name] for name in names])):
        advice = ", ".join(f"{name} {fitting[name]:g}" for name in names)
        advice = f"or these weights for all {steps:,}: {advice}"
    elif all(name in limits for name in names):
        most = sum(limits.values()) // batch_size
        advice = f"and no weights allow more than {most:,}, so add text or raise max_epochs"
    else:
        advice = "or smaller weights of these sources"
    raise ConfigError(
        f"data.sources: {steps:,} steps read {' and '.join(over)}: take at most {low:,} steps with"
        f" these weights, {advice}"
    )


def _fitting_weights(
    weights: Mapping[str, int], limits: Mapping[str, int], total: int
) -> dict[str, float] | None:
    """Shares that keep every limit: sources over theirs get it, the others divide the rest.

    None where the limits of all sources together are below `total`.
    """
    capped: dict[str, int] = {}
    while True:
        free = {name: w for name, w in weights.items() if name not in capped}
        rest = total - sum(capped.values())
        if not free:
            break
        over = {
            name: limits[name]
            for name, weight in free.items()
            if name in limits and Fraction(weight, sum(free.values())) * rest > limits[name]
        }
        if not over:
            break
        capped |= over
    if not free:
        return None
    # Rounded down, so that a limit is kept; a mixture's counts are within the number of sources.
    slack = len(weights)
    shares = {name: (count - slack) / total for name, count in capped.items()}
    shares = {name: math.floor(share * 1e4) / 1e4 for name, share in shares.items()}
    left = 1 - sum(shares.values())
    shares |= {name: round(left * w / sum(free.values()), 4) for name, w in free.items()}
    return shares if min(shares.values()) > 0 else None
