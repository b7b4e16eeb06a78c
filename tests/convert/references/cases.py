"""What a fixture consists of, and what the files of this folder share. Runs with torch."""

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Draw = random.Random
#: Lengths of the two documents of a fixture; windows that are drawn are shorter.
LENGTHS = (44, 19)
CASES: dict[str, "Case"] = {}


class Case(NamedTuple):
    """A family.

    Attributes:
      model: the class of transformers.
      config: draws its config.
      initialise: changes the parameters after they are drawn, where a family needs others.
      exact: the tensors are saved in float32.
    """

    model: type
    config: Callable[[Draw], Any]
    initialise: Callable[[torch.nn.Module, Draw], None]
    exact: bool


def case(
    name: str,
    model: type,
    initialise: Callable[..., None] = lambda model, draw: None,
    exact: bool = False,
):
    """Registers a function that draws a config."""

    def register(config: Callable[[Draw], Any]) -> Callable[[Draw], Any]:
        assert name not in CASES, name
        CASES[name] = Case(model, config, initialise, exact)
        return config

    return register


def sizes(draw: Draw, *, layers: tuple[int, int] = (3, 5), head_dim: bool = True) -> dict[str, Any]:
    """Sizes that nearly all configs name alike; head_dim is not width / heads, unless it is left out."""
    heads = draw.choice((2, 3, 4, 6))
    kv_heads = draw.choice([n for n in range(1, heads + 1) if heads % n == 0])
    per_head = draw.choice([n for n in (4, 6, 8, 10, 12) if 18 <= heads * n <= 36])
    found = dict(
        vocab_size=draw.randint(40, 72),
        hidden_size=heads * per_head,
        intermediate_size=draw.randint(20, 44),
        num_hidden_layers=draw.randint(*layers),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=draw.choice((1e-5, 1e-6)),
        tie_word_embeddings=draw.random() < 0.5,
        max_position_embeddings=draw.choice((64, 96, 128)),
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    if head_dim:
        found["head_dim"] = draw.choice([n for n in (6, 8, 10, 12) if n != per_head])
    return found


def window(draw: Draw) -> int:
    """A window shorter than the documents."""
    return draw.randint(3, 15)


def types(draw: Draw, layers: int) -> list[str] | None:
    """Full and windowed layers in any order, or the class's own."""
    kinds = ("full_attention", "sliding_attention")
    return [draw.choice(kinds) for _ in range(layers)] if draw.random() < 0.7 else None


def rope(draw: Draw, *, scaled: tuple[str, ...] = ("linear", "llama3", "yarn")) -> dict[str, Any]:
    """`rope_parameters`: a base, and a scaling of one of these kinds or none."""
    theta = draw.choice((100.0, 1_000.0, 10_000.0, 500_000.0))
    kind = draw.choice(("default", *scaled))
    found: dict[str, Any] = dict(rope_type=kind, rope_theta=theta)
    if kind != "default":
        found["factor"] = draw.choice((2.0, 4.0, 8.0))
    if kind in ("llama3", "yarn"):
        found["original_max_position_embeddings"] = draw.choice((16, 32))
    if kind == "llama3":
        found |= dict(low_freq_factor=1.0, high_freq_factor=draw.choice((2.0, 4.0)))
    if kind == "yarn" and draw.random() < 0.5:
        found |= dict(beta_fast=draw.choice((16.0, 32.0)), beta_slow=draw.choice((1.0, 2.0)))
        if draw.random() < 0.5:
            found["attention_factor"] = draw.choice((0.8, 1.2))
    return found


def draw_parameters(model: torch.nn.Module, seed: int) -> None:
    """Parameters that leave no part without influence: the library's own are too small for that."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.data = noise * parameter.shape[-1] ** -0.5
        else:
            parameter.data = parameter.data + 0.3 * noise
    embedding = model.get_input_embeddings().weight
    embedding.data *= math.sqrt(embedding.shape[-1])
