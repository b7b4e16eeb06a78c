"""What a config cannot say about a published model: its name, its source, its published figures."""

import re
from typing import Literal

from hybridlm.settings.bounds import PositiveInt, settings
from hybridlm.settings.reader import require

_FIGURE = re.compile(r"^[0-9]+(\.[0-9]+)?[MBT]$")
_UNITS = {"M": 1e6, "B": 1e9, "T": 1e12}

Excluded = Literal[
    "nothing", "embedding", "embedding and head", "embeddings of layers", "n-gram embeddings"
]


@settings
class Facts:
    """The facts that a recipe of `configs/gallery` states in `FACTS`.

    Attributes:
      title: the model's published name.
      developer: who published it.
      released: month of publication, "2024-04".
      source: paper (with its arXiv number) or report.
      upstream: name of the published weights, "OWNER/NAME".
      context: tokens of the longest context that it was published for.
      total: parameters as published, with the digits as published: "8.03B"; None where no figure was
        found.
      total_excludes: what the published `total` does not count; "n-gram embeddings" are `outside`.
      active: parameters that a token uses, as published; None where experts play no part.
      active_excludes: what the published `active` does not count.
      cut: the published figures are cut off after their last digit, and not rounded.
      unsupported: what the published model has and this config has not, a phrase each.
      left_out: parameters of such parts that every token uses, by phrase; the sheet adds them to its
        total and to its active parameters.
      beside: by mixer, what its layers have beside it that this config has not, in few words.
      surplus: parameters of matrices that this config has beyond the published ones, where it has full
        maps for maps of low rank, by phrase; the sheet takes them from its total, its active
        parameters and its FLOPs.
      outside: parameters of published parts that tokens of text do not use, by phrase; the sheet adds
        them to its total alone.
      left_out_kv: bytes of keys and values of one token, in bfloat16, in parts that this config has
        not, by phrase; the sheet adds them to its own.
      left_out_cache: bytes of one token that such parts cache beside keys and values, by phrase.
      unconfirmed: settings of this config that no publication was found for, a phrase each.
    """

    title: str
    developer: str
    released: str
    source: str
    upstream: str
    context: PositiveInt
    total: str | None = None
    total_excludes: Excluded = "nothing"
    active: str | None = None
    active_excludes: Excluded = "nothing"
    cut: bool = False
    unsupported: tuple[str, ...] = ()
    left_out: dict[str, float] | None = None
    beside: dict[str, str] | None = None
    surplus: dict[str, float] | None = None
    outside: dict[str, float] | None = None
    left_out_kv: dict[str, int] | None = None
    left_out_cache: dict[str, int] | None = None
    unconfirmed: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("total", "active"):
            text = getattr(self, name)
            require(
                text is None or bool(_FIGURE.match(text)),
                name,
                f'must be a number and M, B or T, such as "8.03B", not {text!r}',
            )
        require(
            bool(re.match(r"^[0-9]{4}-[0-9]{2}$", self.released)),
            "released",
            f'must be a year and a month, such as "2024-04", not {self.released!r}',
        )


def bounds(text: str, cut: bool = False) -> tuple[float, float]:
    """The counts that are published as `text`: "8.03B" stands for 8.025e9 to 8.035e9.

    With `cut`, digits after the last one were dropped: 8.03e9 to 8.04e9.
    """
    number, unit = text[:-1], _UNITS[text[-1]]
    step = 10.0 ** -len(number.partition(".")[2]) * unit
    low = float(number) * unit - (0 if cut else step / 2)
    return low, low + step
