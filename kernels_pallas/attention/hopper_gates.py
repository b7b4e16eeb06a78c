"""What forget gates add to the logits of a tile in the Hopper kernels, in the layout of its products.

A query sees a key with the difference of their sums of log-gates, each a pair high + low
(`forget.Cumulative`), in units of log 2 as the logits are. In a tile with a mask it is computed pair by
pair: high - high is exact for neighbours, whatever was summed before them, in other documents too. All
queries of a tile without a mask are of its keys' document and after them. There the difference is cut
at a token between: what is left for each pair is one number per column or per row, added by the
instruction that scales the logit, and the other part goes to the log-sum-exp. Both parts have one sign,
so that nothing cancels.
"""

from typing import Any, NamedTuple

from kernels_pallas import mosaic_gpu as mg


class OwnQueries(NamedTuple):
    """The sums of a warpgroup's queries, which are the rows of its tiles; columns are keys.

    Attributes:
      high, low: of each query.
      first: (high, low) of the first query.
      since: of each query, its sum after the first query; of the same document.
    """

    high: Any
    low: Any
    first: tuple[Any, Any]
    since: Any

    @classmethod
    def read(cls, ref) -> "OwnQueries":
        """From shared memory (2, rows)."""
        high, low = (mg.of_rows(ref.at[part]) for part in range(2))
        first = ref[0, 0], ref[1, 0]
        return cls(high, low, first, (high - first[0]) + (low - first[1]))

    def add(self, logits, keys, masked: bool):
        """The logits with what the sums of a tile of keys (2, columns) add; without a mask all but
        `since`."""
        shape = logits.shape
        high, low = (mg.of_columns(keys.at[part]) for part in range(2))
        if not masked:
            return logits + mg.along_columns((self.first[0] - high) + (self.first[1] - low), shape)
        for own, other in (self.high, high), (self.low, low):
            logits += mg.along_rows(own, shape) - mg.along_columns(other, shape)
        return logits


class OwnKeys(NamedTuple):
    """The sums of a warpgroup's keys, which are the rows of its tiles; columns are queries.

    Attributes:
      high, low: of each key.
      last: (high, low) of the last key.
    """

    high: Any
    low: Any
    last: tuple[Any, Any]

    @classmethod
    def read(cls, ref) -> "OwnKeys":
        """From shared memory (2, rows)."""
        high, low = (mg.of_rows(ref.at[part]) for part in range(2))
        end = ref.shape[-1] - 1
        return cls(high, low, (ref[0, end], ref[1, end]))

    def less(self, logits, lses, masked: bool):
        """The logits with what gates add, less the log-sum-exp of their queries. `lses` (2, columns) are
        pairs, less the sums of the queries."""
        shape = logits.shape
        pairs = zip((0, 1), (self.high, self.low), self.last)
        if masked:
            for part, own, _ in pairs:
                lse = mg.along_columns(mg.of_columns(lses.at[part]), shape)
                logits -= lse + mg.along_rows(own, shape)
            return logits
        until = (self.last[0] - self.high) + (self.last[1] - self.low)
        high, low = (mg.of_columns(lses.at[part]) + last for part, _, last in pairs)
        return (logits + mg.along_rows(until, shape)) - mg.along_columns(high + low, shape)
