"""Mixtures by index: the source, and the sequence of that source, of element g of the stream."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest integers in the same ratio as `weights`; 0.7 and 0.3 become exactly 7 and 3.

    A float is read as the decimal number that it prints as.
    """
    fractions = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(f.denominator for f in fractions))
    whole = [int(f * scale) for f in fractions]
    divisor = math.gcd(*whole)
    return tuple(w // divisor for w in whole)


def select(index: int, weights: Sequence[int]) -> tuple[int, int]:
    """(source, the number of its earlier elements) of element `index` of the mixture.

    Each cycle of sum(weights) elements has exactly weights[i] elements of source i. The first n
    elements have n * weights[i] / sum(weights) elements of source i, with an error below the number
    of sources: source i takes a rounded share of the elements that sources 0 to i - 1 did not take,
    and each rounding adds an error below 1. The cost does not depend on the index.

    (grain.MapDataset.mix uses the same scheme, but first rounds the weights to multiples of a
    hundredth of the smallest: 0.7 and 0.3 become 233 to 100.)
    """
    before, after, remaining = index, index + 1, sum(weights)
    for source, weight in enumerate(weights):
        left_before = before * (remaining - weight) // remaining
        left_after = after * (remaining - weight) // remaining
        if after - left_after != before - left_before:
            return source, before - left_before
        before, after, remaining = left_before, left_after, remaining - weight
    raise AssertionError("the last source takes every remaining element")


def taken(count: int, weights: Sequence[int]) -> tuple[int, ...]:
    """How many of the first `count` elements of the mixture are of each source, see `select`."""
    found, remaining = [], sum(weights)
    for weight in weights:
        left = count * (remaining - weight) // remaining
        found.append(count - left)
        count, remaining = left, remaining - weight
    return tuple(found)


def source_seed(seed: int, name: str) -> int:
    """The 32-bit seed of a source's shuffle, from the run's seed and the source's name.

    Grain adds the epoch to the seed, so the seeds of two sources must be far apart.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest)


def spread_order(count: int) -> Iterator[int]:
    """0..count-1 in bit-reversed order, in which every prefix is spread evenly."""
    bits = max(1, (count - 1).bit_length())
    for i in range(1 << bits):
        if (index := int(format(i, f"0{bits}b")[::-1], 2)) < count:
            yield index
