"""The checksum of an array is one value on hosts and devices, and any damage changes it."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from hybridlm.runs import checksum

DTYPES = [
    *("float32", "float16", "bfloat16", "int32", "uint32", "int16", "int8", "uint8", "bool"),
    *("float8_e4m3fn", "float4_e2m1fn", "int4", "complex64"),
]
SHAPES = [(), (1,), (0, 3), (257,), (5, 7, 3), (3, 40, 301)]
MASK = 2**32 - 1
VERSIONS = pytest.mark.parametrize("version", checksum.VERSIONS)


def drawn(rng, shape, dtype):
    values = 4 * rng.standard_normal(shape)
    return np.asarray(values, ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))


def spread(h, a, b):
    h ^= h >> 16
    h = h * a & MASK
    h ^= h >> 13
    return h * b & MASK


def mix(h, a, b):
    h = spread(h, a, b)
    return h ^ h >> 16


def word_by_word(array, block, version):
    """The definition, in integers: what the module's docstring says, for elements of 4 bytes."""
    trailing = 1
    for axis in range(array.ndim - 1):
        if np.prod(array.shape[axis:]) <= block:
            trailing = array.ndim - axis
            break
    columns = int(np.prod(array.shape[array.ndim - trailing :]))
    first = second = 0
    for index, word in enumerate(array.reshape(-1).view(np.uint32).tolist()):
        row, column = divmod(index, columns)
        keys = [
            column * checksum.GOLDEN + mix(row, *c) & MASK
            for c in (checksum.MURMUR, checksum.LOWBIAS)
        ]
        if version == 1:
            one = mix(word ^ keys[0], *checksum.MURMUR)
            two = mix(one ^ keys[1], *checksum.LOWBIAS)
        else:
            one = mix(word ^ keys[0], *checksum.MURMUR)
            two = spread(word ^ keys[0], *checksum.MURMUR) * (keys[0] | 1) & MASK
        first, second = first + one & MASK, second + two & MASK
    return first, second


@VERSIONS
@pytest.mark.parametrize("block", [checksum.BLOCK, 12])
def test_it_is_what_its_definition_says(block, version):
    array = drawn(np.random.default_rng(), (4, 3, 7), "float32")
    expected = word_by_word(array, block, version)
    assert tuple(checksum.numpy_lanes(array, block, version)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_and_jax_agree(dtype):
    rng = np.random.default_rng()
    for shape in SHAPES:
        array = drawn(rng, shape, dtype)
        block = int(rng.choice([checksum.BLOCK, 100, 7]))
        version = int(rng.choice(checksum.VERSIONS))
        lanes = jax.jit(checksum.jax_lanes, static_argnums=(1, 2))
        on_device = lanes(jnp.asarray(array), block, version)
        on_host = checksum.numpy_lanes(array, block, version)
        assert tuple(on_host) == tuple(map(int, on_device)), (dtype, shape, block, version)


@VERSIONS
@pytest.mark.parametrize("dtype", ["uint32", "uint16"])
def test_pieces_of_a_large_array_add_up(dtype, version, monkeypatch):
    """By numpy alone, and by the program for hosts, at any alignment and number of blocks."""
    rng = np.random.default_rng()
    monkeypatch.setattr(checksum, "_PIECES", (2**18, 2**16))
    size = int(rng.integers(2**18, 2**20))
    flat = rng.integers(0, 2**16, 2 * size, np.dtype(dtype))
    for array, block in (
        (flat[int(rng.integers(1, 16)) :], checksum.BLOCK),
        (flat.reshape(2, -1), size + 1),
    ):
        monkeypatch.setattr(checksum, "_WORTH_A_PROGRAM", 2**60)
        alone = tuple(checksum.numpy_lanes(array, block, version))
        monkeypatch.setattr(checksum, "_WORTH_A_PROGRAM", 0)
        assert tuple(checksum.numpy_lanes(array, block, version)) == alone
        on_device = jnp.asarray(array)
        assert tuple(map(int, checksum._program(on_device, block, version))) == alone


@pytest.mark.parametrize("by_program", [False, True])
def test_pieces_have_every_word_once_and_cross_no_block(by_program):
    rng = np.random.default_rng()
    for size in (0, 1, *(int(2 ** rng.uniform(0, 27)) for _ in range(200))):
        columns = int(rng.choice([checksum.BLOCK, max(size // 3, 2**14)]))
        unaligned = int(rng.integers(16))
        at = 0
        for piece in checksum._pieces(size, columns, unaligned, by_program):
            assert piece.start + piece.skipped == at, (size, columns, unaligned, piece)
            at = piece.start + piece.size
            assert piece.start // columns == (at - 1) // columns
            assert not piece.by_program or piece.size in checksum._PIECES
            assert piece.by_program or piece.size <= checksum._CHUNK
        assert at == size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_flipped_bit_changes_it(dtype):
    array = drawn(np.random.default_rng(), (6, 9), dtype)
    whole = tuple(checksum.numpy_lanes(array))
    raw = array.view(np.uint8).reshape(-1)
    for byte in range(raw.size):
        for bit in range(8):
            raw[byte] ^= 1 << bit
            changed = checksum.numpy_lanes(array)
            raw[byte] ^= 1 << bit
            # The first lane is certain to change, whatever the second does.
            assert changed[0] != whole[0], (byte, bit)


def test_pairs_of_flipped_bits_change_it():
    """Also two of the same position, which a sum of plain products would lose (two signs)."""
    array = drawn(np.random.default_rng(), (64,), "float32")
    whole = tuple(checksum.numpy_lanes(array))
    words = array.view(np.uint32)
    for bit in range(32):
        for i in range(0, 63):
            words[[i, i + 1]] ^= np.uint32(1 << bit)
            assert tuple(checksum.numpy_lanes(array)) != whole, (i, bit)
            words[[i, i + 1]] ^= np.uint32(1 << bit)


def swapped_elements(a):
    a[3, 4], a[7, 1] = a[7, 1].copy(), a[3, 4].copy()


def swapped_rows(a):
    a[[2, 9]] = a[[9, 2]]


def zeroed_row(a):
    a[5] = 0


def moved_by_one(a):
    a[:] = np.roll(a, 1)


def negated(a):
    a[:] = -a


@pytest.mark.parametrize(
    "damage", [swapped_elements, swapped_rows, zeroed_row, moved_by_one, negated]
)
def test_other_damage_changes_it(damage):
    array = drawn(np.random.default_rng(), (16, 8), "float32")
    damaged = array.copy()
    damage(damaged)
    assert checksum.checksums([damaged]) != checksum.checksums([array])


def test_shapes_and_dtypes_are_part_of_it():
    ones = np.ones((2, 6), np.float32)
    kinds = [ones, ones.reshape(3, 4), ones.view(np.int32), np.ones((2, 7), np.float32)]
    assert len({checksum.checksums([kind])["0"] for kind in kinds}) == 4
    assert checksum.checksums({"a": [ones]})["a/0"].startswith("float32[2,6] ")


def test_differences_are_named():
    saved = {"a": "float32[2] 00", "b": "float32[2] 00", "c": "float32[2] 00", "d": "int8[] 00"}
    found = {"a": "float32[2] 01", "b": "float32[3] 00", "d": "int8[] 00", "e": "int8[] 00"}
    assert checksum.differences(saved, found) == {
        "a": "has changed since it was saved",
        "b": "is float32[3] and was float32[2]",
        "c": "is missing",
        "e": "was not saved with it",
    }
    assert not checksum.differences({"d": "int8[] 00"}, {"d": "int8[]"})


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, pathlib, sys
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from hybridlm.runs import checkpoint, checksum
from hybridlm.errors import RunError

rng = np.random.default_rng()
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
specs = [P(), P("a"), P("b"), P(("a", "b")), P(None, "b"), P("b", "a"), P("a", "b"), P(None, ("b", "a"))]
lanes = jax.jit(checksum.jax_lanes, static_argnums=1)
for i, spec in enumerate(specs):
    dtype, block = (np.float32, jnp.bfloat16, np.int8)[i % 3], (2**32, 80)[i % 2]
    array = (9 * rng.standard_normal((16, 24, 3))).astype(dtype)
    x = jax.device_put(array, NamedSharding(mesh, spec))
    assert tuple(checksum.numpy_lanes(array, block)) == tuple(map(int, lanes(x, block))), spec
program = lanes.lower(x, 2**32).compile().as_text()
assert "all-reduce" in program or "all-gather" in program
assert not any("all-gather" in line and "24" in line for line in program.splitlines()), program

# A checkpoint that one mesh saved is verified on another, and without one.
state = {"w": jax.device_put(rng.standard_normal((16, 24)).astype(np.float32), NamedSharding(mesh, P("b", "a")))}
folder = pathlib.Path(sys.argv[1])
checkpoints = checkpoint.Checkpoints(folder, keep=1)
checkpoints.save(1, state, {})
# The next step overwrites what was saved, while it is written.
donate = jax.jit(lambda tree: jax.tree.map(lambda x: -x, tree), donate_argnums=0)
state = jax.tree.map(lambda x: -x, donate(state))
checkpoints.wait()
for spec in specs[::3]:
    abstract = {"w": jax.ShapeDtypeStruct((16, 24), np.float32, sharding=NamedSharding(mesh, spec))}
    assert (checkpoints.restore(abstract)["w"] == state["w"]).all()
    by_program = jax.device_get(lanes(checkpoints.restore(abstract)["w"], 2**32))
    assert checksum.checksums(state)["w"].endswith("%08x%08x" % by_program)
checkpoint.load_numpy(folder)
assert checkpoint.verify(folder, 1) == 1
checkpoints.close()
"""


def test_every_sharding_gives_one_value(tmp_path, root):
    """On 8 simulated devices: each adds its own words, and no array is gathered."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)],
        cwd=root,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
