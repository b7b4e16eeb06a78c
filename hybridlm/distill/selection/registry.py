"""All selectors by their names in `--methods`. A new selector is a function and a line here."""

from hybridlm.distill.selection import ranking, searching
from hybridlm.distill.selection.selection import Selector
from hybridlm.settings.registry import by_name

SELECTORS: dict[str, Selector] = by_name(
    [
        searching.GREEDY,
        ranking.HALO,
        searching.KL,
        ranking.GATES,
        ranking.KL_ONCE,
        ranking.RECALL,
        ranking.UNIFORM,
        ranking.RANDOM,
        searching.EXHAUSTIVE,
    ]
)
