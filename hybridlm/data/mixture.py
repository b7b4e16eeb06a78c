"""Mixtures by index: which source, and which of its windows, is sequence g of the stream."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as the smallest integers in the same ratio; 0.7 and 0.3 are exactly 7 and 3.

    A float counts as the decimal number it prints as.
    """
    fractions = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(f.denominator for f in fractions))
    whole = [int(f * scale) for f in fractions]
    divisor = math.gcd(*whole)
    return tuple(w // divisor for w in whole)


def select(index: int, weights: Sequence[int]) -> tuple[int, int]:
    """(source, how many of its elements came before) of element `index` of the mixture.

    Every sum(weights) elements, from a multiple of it on, hold exactly weights[i] of source i. Of
    the first n elements source i has n * weights[i] / sum(weights), give or take less than the
    number of sources: it is a rounded share of what the sources before it left, and each rounding
    adds less than 1. Costs the same at any index.

    (grain.MapDataset.mix has the same scheme, but first rounds weights to multiples of a hundredth
    of the smallest: 0.7 and 0.3 become 233 to 100.)
    """
    before, after, rest = index, index + 1, sum(weights)
    for source, weight in enumerate(weights):
        left_before = before * (rest - weight) // rest
        left_after = after * (rest - weight) // rest
        if after - left_after != before - left_before:
            return source, before - left_before
        before, after, rest = left_before, left_after, rest - weight
    raise AssertionError("the last source takes what is left")


def source_seed(seed: int, name: str) -> int:
    """A 32-bit seed of a source's shuffle, from the run's seed and the source's name.

    Grain adds the epoch to it, so seeds of sources must not lie next to each other.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest)


def spread_order(count: int) -> Iterator[int]:
    """0..count-1 in an order of which every beginning is spread evenly: by reversed bits."""
    bits = max(1, (count - 1).bit_length())
    for i in range(1 << bits):
        if (index := int(format(i, f"0{bits}b")[::-1], 2)) < count:
            yield index
