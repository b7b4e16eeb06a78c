"""The fixtures of this folder, each opened, run and compiled once."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm import convert
from hybridlm.convert.registry import FAMILIES
from hybridlm.models.mixers import SequenceContext

HERE = pathlib.Path(__file__).parent
STEPS = 5  # tokens that are decoded one by one
#: Fixtures that are decoded by default: their mixers differ. The others' decoding is slow.
DECODED = {"deepseek_v3", "lfm2", "mamba2", "qwen3_5_dense", "recurrent_gemma"}


def names() -> list[str]:
    """The committed fixtures."""
    return sorted(p.name for p in (HERE / "fixtures").iterdir())


@dataclasses.dataclass(frozen=True)
class Fixture:
    """A tiny model of transformers and what it computes.

    Attributes:
      folder: as `save_pretrained` wrote it, with expected.npz and exported.json.
      checkpoint: the folder, opened by us.
      params: ours.
      tokens, logits: of each document, (T,) and (T, V).
    """

    folder: pathlib.Path
    checkpoint: convert.Checkpoint
    params: dict
    tokens: list[np.ndarray]
    logits: list[np.ndarray]

    @classmethod
    def open(cls, folder: pathlib.Path) -> "Fixture":
        checkpoint = convert.open_checkpoint(folder)
        with np.load(folder / "expected.npz") as file:
            arrays = dict(file)
        tokens, logits = ([arrays[f"{x}_{i}"] for i in (0, 1)] for x in ("tokens", "logits"))
        return cls(folder, checkpoint, checkpoint.params(), tokens, logits)

    @property
    def exported(self) -> dict:
        """What the reference environment found when it loaded our export."""
        return json.loads((self.folder / "exported.json").read_text())

    @functools.cached_property
    def forward(self) -> list[np.ndarray]:
        """Our logits of: document 0 alone, then 0 and 1 packed into one row."""
        first, second = map(len, self.tokens)
        packed = np.concatenate(self.tokens)
        ids = np.array([[1] * first + [0] * second, [1] * first + [2] * second], np.int32)

        @jax.jit
        def run(params, tokens_BT, ids_BT):
            return self.checkpoint.model.bind(params)(tokens_BT, SequenceContext.of(ids_BT))

        alone, both = np.asarray(run(self.params, np.stack([packed, packed]), ids))
        return [alone[:first], both[:first], both[first:]]

    @functools.cached_property
    def decoded(self) -> np.ndarray:
        """Our logits of document 0: a prefill, and the last `STEPS` tokens one by one."""
        tokens, model = self.tokens[0], self.checkpoint.model
        first = len(tokens) - STEPS

        @functools.partial(jax.jit, static_argnames="state_is_new")
        def extend(params, tokens_BT, at, state, state_is_new=False):
            module = model.bind(params)
            if state_is_new:
                state = module.init_decode(1, len(tokens))
            positions_BT = at + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
            context = SequenceContext(jnp.ones_like(tokens_BT), positions_BT)
            return module.extend(tokens_BT, context, state)

        found, state = extend(self.params, tokens[None, :first], 0, None, state_is_new=True)
        rows = [found[0]]
        for at in range(first, len(tokens)):
            found, state = extend(self.params, tokens[None, at : at + 1], at, state)
            rows.append(found[0])
        return np.concatenate(rows)


def fixture_folder(config: pytest.Config, name: str) -> pathlib.Path:
    return (config.getoption("--checkpoints") or HERE / "fixtures") / name


@pytest.fixture(scope="session")
def opened(request):
    """Opens a fixture by its name, once."""
    return functools.cache(lambda name: Fixture.open(fixture_folder(request.config, name)))


@pytest.fixture(params=names())
def model(request, opened) -> Fixture:
    """Each fixture."""
    return opened(request.param)


@pytest.fixture(
    params=[n if n in DECODED else pytest.param(n, marks=pytest.mark.slow) for n in names()]
)
def decoding_model(request, opened) -> Fixture:
    """Each fixture; only those of `DECODED` are not slow."""
    return opened(request.param)


@pytest.fixture(scope="session")
def families() -> set[str]:
    """The classes that there is a family for."""
    return {family.architecture for family in FAMILIES}
