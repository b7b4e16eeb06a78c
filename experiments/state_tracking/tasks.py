"""The tasks: permutation automata, whose state the model names after each token, and MQAR.

A word x_1 x_2 ... of elements of a group G has the running products s_t = x_t ... x_1. The label at t
is s_t itself (`word problem`), or where s_t moves point 0, if G acts on points. Parity is the group of
two elements. Tokens and labels are numbers from 0; a word begins at its first token, so the label at
the first token is that token's element.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hybridlm.evals import mqar

VOCAB = 64  # of all tasks, so that one compiled step serves them
PAIRS, SYMBOLS = 6, 20  # of MQAR; half of the symbols are keys, and half values


class Words(NamedTuple):
    """Sequences of one length, (N, T).

    Attributes:
      tokens_NT, labels_NT: int32; the label at t depends on the tokens up to t.
      weights_NT: float32, 1 where the label counts.
    """

    tokens_NT: np.ndarray
    labels_NT: np.ndarray
    weights_NT: np.ndarray


class Task(NamedTuple):
    """A task.

    Attributes:
      title: for tables.
      chance: accuracy of the best guess that ignores the tokens.
      sample: (rng, count, length) -> `Words`.
      sizes: numbers that `sample` depends on.
    """

    name: str
    title: str
    chance: float
    sample: Callable[[np.random.Generator, int, int], Words]
    sizes: tuple[int, ...] = ()


Permutation = tuple[int, ...]  # p[i] is where i goes


def compose(second: Permutation, first: Permutation) -> Permutation:
    """`first`, then `second`."""
    return tuple(second[i] for i in first)


def generated(generators: list[Permutation]) -> list[Permutation]:
    """The group that these permutations generate, sorted; the identity comes first."""
    identity = tuple(range(len(generators[0])))
    found, fresh = {identity}, [identity]
    while fresh:
        fresh = [q for p in fresh for g in generators if (q := compose(g, p)) not in found]
        fresh = list(dict.fromkeys(fresh))
        found.update(fresh)
    return sorted(found)


def automaton(
    tokens: list[Permutation], rng: np.random.Generator, count: int, length: int
) -> Words:
    """Uniform tokens, each a permutation of points; the label is where point 0 has gone."""
    moves = np.array(tokens, np.int32)
    drawn_NT = rng.integers(0, len(tokens), (count, length), np.int32)
    labels_NT, state_N = np.zeros((count, length), np.int32), np.zeros(count, np.int32)
    for t in range(length):
        state_N = moves[drawn_NT[:, t], state_N]
        labels_NT[:, t] = state_N
    return Words(drawn_NT, labels_NT, np.ones((count, length), np.float32))


@functools.cache
def products(group: tuple[Permutation, ...]) -> list[Permutation]:
    """Each element as the permutation of the group's elements that multiplies by it from the left."""
    place = {p: i for i, p in enumerate(group)}
    return [tuple(place[compose(x, s)] for s in group) for x in group]


SWAP = (1, 0)
S3 = tuple(itertools.permutations(range(3)))  # the identity comes first
#: Generate A5, 60 even permutations, the smallest group that is not solvable.
DOUBLE_SWAP, FIVE_CYCLE, IDENTITY = (1, 0, 3, 2, 4), (1, 2, 3, 4, 0), (0, 1, 2, 3, 4)


def parity(rng: np.random.Generator, count: int, length: int) -> Words:
    """Bits; the label is the XOR of all so far."""
    return automaton([(0, 1), SWAP], rng, count, length)


def s3(rng: np.random.Generator, count: int, length: int) -> Words:
    """All six elements; the label is their product, one of six."""
    return automaton(products(S3), rng, count, length)


def a5(rng: np.random.Generator, count: int, length: int) -> Words:
    """Two generators of A5 and the identity; the label is where point 0 of five has gone."""
    return automaton([IDENTITY, DOUBLE_SWAP, FIVE_CYCLE], rng, count, length)


def recall(rng: np.random.Generator, count: int, length: int) -> Words:
    """MQAR with 6 pairs at any length, and token 0 as filler; see `hybridlm.evals.mqar`."""
    seed = int(rng.integers(2**31))
    made = mqar.mqar(length, PAIRS, count, seed=seed, vocab_size=SYMBOLS, random_filler=False)
    return Words(made.tokens, made.targets, made.loss_weights)


TASKS = {
    task.name: task
    for task in (
        Task("parity", "parity", 1 / 2, parity),
        Task("s3", "S3, product", 1 / 6, s3),
        Task("a5", "A5, image of a point", 1 / 5, a5),
        Task("mqar", "MQAR", 2 / SYMBOLS, recall, (PAIRS, SYMBOLS)),
    )
}
