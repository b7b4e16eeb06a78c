"""Checksums of arrays: the same 64 bits for every sharding, computed where the shards are.

An element's bits are a word of 32 bits (two or four words for wider elements). Every word is mixed
with its index in the whole array, and the mixed words are added modulo 2^32 in two lanes. Integer
addition is associative, so XLA adds each shard on its own device and then one number of each.

For a fixed index the first lane's mix is a bijection of the word, so a change within one word
always changes the checksum. Other damage (swapped elements or rows, zeroed blocks, a truncated
tail) leaves it unchanged with a probability of about 2^-64. It protects against accidents, not
against somebody who wants to deceive.

Version 2 mixes with half the operations of version 1: on CPUs it reads memory almost as fast as a
plain sum does. Checkpoints of version 1 are still verified.
"""

import concurrent.futures
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

VERSION = 2  # of the algorithm and of the entries' text
VERSIONS = (1, 2)  # that can be verified

GOLDEN = 0x9E3779B1  # odd, 2^32 / golden ratio: consecutive indices get unlike keys
MURMUR = (0x85EBCA6B, 0xC2B2AE35)  # the finaliser of MurmurHash3 (Appleby)
LOWBIAS = (0x7FEB352D, 0x846CA68B)  # constants of Wellons' search for mixes with low bias
BLOCK = 2**32  # words that an index of 32 bits tells apart; larger arrays have several blocks

_CHUNK = 2**15  # words: numpy's temporaries stay in the cache
# Words that the program for hosts takes at once. Starting it takes as long as numpy with a chunk.
_PIECES = tuple(2**n for n in (24, 22, 20, 18, 16))
_INDEX_KEYS = np.arange(_CHUNK, dtype=np.uint32) * np.uint32(GOLDEN)
_WORTH_A_PROGRAM = 2**24  # bytes: numpy needs about as long for these as that program to compile


def checksums(tree: Any, version: int = VERSION) -> dict[str, str]:
    """The entry of each array of a pytree, by its path: "float32[3,4] 0123456789abcdef".

    Arrays of devices are read where they are, on all hosts; every host gets all entries.

    Args:
      version: one of `VERSIONS`.
    """
    return started(tree, version)()


def started(tree: Any, version: int = VERSION) -> Callable[[], dict[str, str]]:
    """Starts to compute `checksums`; the function that is returned waits for them.

    Programs on devices are queued before this returns, and the runtime runs them before a later
    program may overwrite an array that was donated to it. Arrays that numpy reads (those of numpy,
    and of CPU devices of one process) are read in a thread: nobody may change or donate them
    before the result is there.
    """
    found = named(tree)
    on_host = {name: x for name, x in found.items() if _is_on_host(x)}
    thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checksums")
    host_sums = thread.submit(_host_sums, on_host, version=version)
    thread.shutdown(wait=False)
    lanes = {}
    for name, x in found.items():
        if name not in on_host:
            lanes[name] = _program(x, version=version)
            if jax.default_backend() == "cpu":
                # Two programs with collectives at once can wait for each other's threads there.
                jax.block_until_ready(lanes[name])
    layouts = {name: layout(x) for name, x in found.items()}

    def wait() -> dict[str, str]:
        sums = {**host_sums.result(), **jax.device_get(lanes)}
        return {name: entry(text, sums[name]) for name, text in layouts.items()}

    return wait


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, with "/" between keys."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def entry(layout: str, lanes: tuple[Any, Any]) -> str:
    """The text of one array's dtype, shape and checksum."""
    return f"{layout} {int(lanes[0]):08x}{int(lanes[1]):08x}"


def layout(array: Any) -> str:
    """Dtype and shape of an array, or of a description of one, as "float32[3,4]"."""
    return f"{np.dtype(array.dtype).name}[{','.join(map(str, array.shape))}]"


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each array that differs, by name; `found` may have layouts only."""
    faults = {}
    for name in sorted({*expected, *found}):
        if name not in found:
            faults[name] = "is missing"
        elif name not in expected:
            faults[name] = "was not saved with it"
        elif expected[name].split(" ")[0] != found[name].split(" ")[0]:
            faults[name] = f"is {found[name].split(' ')[0]} and was {expected[name].split(' ')[0]}"
        elif " " in found[name] and expected[name] != found[name]:
            faults[name] = "has changed since it was saved"
    return faults


def numpy_lanes(array: np.ndarray, block: int = BLOCK, version: int = VERSION) -> np.ndarray:
    """The two lanes of an array's checksum, uint32 (2,), on the host.

    Args:
      array: of any numeric dtype, bool included.
      block: see `BLOCK`; smaller in tests.
      version: one of `VERSIONS`.
    """
    return _host_sums({"": array}, block, version)[""]


def jax_lanes(
    x: jax.Array, block: int = BLOCK, version: int = VERSION
) -> tuple[jax.Array, jax.Array]:
    """The same with jax: two uint32 scalars, under any sharding of `x`."""
    words = _device_words(x)
    if words.size == 0:
        return jnp.uint32(0), jnp.uint32(0)
    trailing = _trailing_axes(words.shape, block)
    axes = range(words.ndim)
    key = _linear_index(words.shape, axes[words.ndim - trailing :]) * np.uint32(GOLDEN)
    row = _linear_index(words.shape, axes[: words.ndim - trailing])
    return _lanes(words, key + _mix(row, *MURMUR), key + _mix(row, *LOWBIAS), version)


def _lanes(words: jax.Array, first_key: jax.Array, second_key: jax.Array, version: int) -> Any:
    """The two sums over words, uint32 as their keys."""
    return _summed(*_mixed(words, first_key, second_key, version))


def _summed(first: jax.Array, second: jax.Array) -> Any:
    """The sums of two arrays of uint32, modulo 2^32."""
    # One reduction of both lanes: XLA vectorises it on CPUs, where two sums ran 14 times slower.
    return lax.reduce(
        (first, second),
        (np.uint32(0), np.uint32(0)),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        tuple(range(first.ndim)),
    )


_program = jax.jit(jax_lanes, static_argnames=("block", "version"))


def _mixed[A: (jax.Array, np.ndarray)](
    words: A, first_key: A, second_key: A, version: int
) -> tuple[A, A]:
    """Of each word what it adds to the two lanes; all are uint32, of jax or of numpy."""
    if version == 1:
        first = _mix(words ^ first_key, *MURMUR)
        return first, _mix(first ^ second_key, *LOWBIAS)
    # As sums of `spread` alone, 5 of a million pairs of flips of one bit cancelled in the first lane.
    spread = _spread(words ^ first_key, *MURMUR)
    return spread ^ (spread >> 16), spread * (first_key | 1)


def _mix[A: (jax.Array, np.ndarray)](h: A, a: int, b: int) -> A:
    """A bijection of 32 bits that maps 0 to 0; every bit of `h` reaches every bit of the result."""
    h = _spread(h, a, b)
    return h ^ (h >> 16)


def _spread[A: (jax.Array, np.ndarray)](h: A, a: int, b: int) -> A:
    """The same; bits reach only higher ones in the last step."""
    h = h ^ (h >> 16)
    h = h * np.uint32(a)
    h = h ^ (h >> 13)
    return h * np.uint32(b)


def _trailing_axes(shape: tuple[int, ...], block: int) -> int:
    """How many trailing axes make a block: as many as have at most `block` words, at least one."""
    count = 1
    while count < len(shape) and math.prod(shape[-count - 1 :]) <= block:
        count += 1
    return min(count, len(shape))


def _linear_index(shape: tuple[int, ...], axes: range) -> jax.Array:
    """The C-order index over `axes`, uint32 of `shape`; XLA splits it with the array."""
    index, stride = jnp.uint32(0), 1
    for axis in reversed(axes):
        step = np.uint32(stride % 2**32)
        index = index + lax.broadcasted_iota(jnp.uint32, shape, axis) * step
        stride *= shape[axis]
    return index


def _device_words(x: jax.Array) -> jax.Array:
    """The bits of an array as uint32; elements of 8 bytes have two on a new last axis."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if _bits(x.dtype) < 8 or x.dtype == np.bool_:
        x = x.astype(_whole_byte(x.dtype))
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(np.dtype(x.dtype).itemsize, jnp.uint32)
    return lax.bitcast_convert_type(x, narrow).astype(jnp.uint32)


def _host_words(array: np.ndarray) -> np.ndarray:
    """The same with numpy, in C order in one dimension; narrow elements are widened later."""
    if _bits(array.dtype) < 8 or array.dtype == np.bool_:
        array = array.astype(_whole_byte(array.dtype))
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view({1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32))


def _bits(dtype: Any) -> int:
    return jax.dtypes.itemsize_bits(dtype)


def _whole_byte(dtype: Any) -> Any:
    """A dtype of whole bytes that holds the values of a narrower one."""
    if np.dtype(dtype) == np.bool_:
        return np.uint8
    return np.float32 if jnp.issubdtype(dtype, jnp.floating) else np.int8


def _host_sums(
    arrays: Mapping[str, Any], block: int = BLOCK, version: int = VERSION
) -> dict[str, np.ndarray]:
    """The lanes of each array, uint32 (2,): by a program, or by numpy where that is not worth it.

    On one core the program adds up to 25 GB/s and numpy 2 GB/s.
    """
    total = sum(x.nbytes for x in arrays.values())
    cpu = _cpu_device() if total >= _WORTH_A_PROGRAM else None
    sums = {name: np.zeros(2, np.uint32) for name in arrays}
    started = []
    with jax.default_device(cpu):
        program = _piece_program() if cpu is not None else None
        for name, array in arrays.items():
            array = np.asarray(array)  # of several simulated devices a copy
            words = _host_words(array)
            if words.size > array.size:
                shape = (*array.shape, words.size // array.size)
            else:
                shape = array.shape
            columns = math.prod(shape[len(shape) - _trailing_axes(shape, block) :])
            # The program reads memory of this alignment without a copy.
            unaligned = -words.ctypes.data % 64 // words.itemsize
            for piece in _pieces(words.size, columns, unaligned, by_program=cpu is not None):
                content = words[piece.start : piece.start + piece.size]
                offsets = _key_offsets(*divmod(piece.start, columns))
                if piece.by_program:
                    skipped = np.uint32(piece.skipped)
                    started.append((name, program(content, offsets, skipped, version)))
                else:
                    sums[name] += _numpy_piece(content, offsets, version)
    for name, lanes in started:
        sums[name] += np.stack(lanes)
    return sums


class _Piece(NamedTuple):
    """Words of one block that are summed at once.

    Attributes:
      start: the index of the first word.
      size: in words.
      skipped: the first words that an earlier piece has summed.
      by_program: whether the program sums it, and not numpy.
    """

    start: int
    size: int
    skipped: int = 0
    by_program: bool = False


def _pieces(size: int, columns: int, unaligned: int, by_program: bool) -> Iterator[_Piece]:
    """Splits `size` words, of blocks of `columns`.

    The program has few sizes. The last words of a block, if they are few, are the end of a piece
    that begins within the pieces before it: to read words twice takes less time than numpy, or than
    many small programs.
    """
    for begin in range(0, size, max(columns, 1)):
        start, end = begin, min(begin + columns, size)
        while start < end:
            left = end - start
            smaller = [n for n in _PIECES if n <= left]
            larger = [n for n in _PIECES if left <= n <= end - begin]
            if by_program and start < unaligned:
                piece = _Piece(start, min(left, unaligned - start))
            elif not by_program or not (smaller or larger) or left <= _CHUNK:
                piece = _Piece(start, min(left, _CHUNK))
            elif larger and (8 * left <= end - begin or not smaller):
                piece = _Piece(end - larger[-1], larger[-1], larger[-1] - left, by_program)
            else:
                piece = _Piece(start, smaller[0], 0, by_program)
            yield piece
            start = piece.start + piece.size


def _numpy_piece(words: np.ndarray, offsets: np.ndarray, version: int) -> np.ndarray:
    """The two sums over up to `_CHUNK` words of one block, uint32 (2,).

    Args:
      offsets: the keys of the first word.
    """
    keys = _INDEX_KEYS[: words.size] + offsets[:, None]
    words = words.astype(np.uint32, copy=False)
    return np.array([x.sum(dtype=np.uint32) for x in _mixed(words, *keys, version)])


def _jax_piece(words: jax.Array, offsets: jax.Array, skipped: jax.Array, version: int) -> Any:
    """The same with jax, without the first `skipped` words."""
    index = lax.iota(jnp.uint32, words.size)
    keys = (index * np.uint32(GOLDEN) + offset for offset in offsets)
    mixed = _mixed(words.astype(jnp.uint32), *keys, version)
    return _summed(*(jnp.where(index >= skipped, x, 0) for x in mixed))


@functools.cache
def _piece_program() -> Callable[..., Any]:
    """`_jax_piece`, compiled for vectors of 512 bits: with AVX-512 it takes a quarter less time."""
    wide = {"xla_cpu_prefer_vector_width": 512}
    try:
        jax.jit(lambda: 0, compiler_options=wide).lower().compile()
    except jax.errors.JaxRuntimeError:  # this XLA has no such option
        wide = None
    return jax.jit(_jax_piece, static_argnums=3, compiler_options=wide)


def _key_offsets(row: int, column: int) -> np.ndarray:
    """The two keys of the word in column `column` of block `row`, uint32 (2,)."""
    return _row_keys(row) + np.uint32(column * GOLDEN % 2**32)


@functools.lru_cache(maxsize=1)
def _row_keys(row: int) -> np.ndarray:
    of_row = np.full(1, row % 2**32, np.uint32)
    return np.concatenate([_mix(of_row, *constants) for constants in (MURMUR, LOWBIAS)])


def _is_on_host(x: Any) -> bool:
    """Whether numpy can read `x`; of several simulated devices it gets a copy."""
    if not isinstance(x, jax.Array):
        return True
    devices = x.sharding.device_set
    return x.is_fully_addressable and all(device.platform == "cpu" for device in devices)


def _cpu_device() -> jax.Device | None:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        return None
