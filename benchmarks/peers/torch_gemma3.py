"""Training speed of PyTorch + transformers on a CPU: Gemma 3 or Qwen 3 classes, sdpa, AdamW.

Both classes alternate sliding-window and full attention. Qwen 3 is the architecture of the other
workers exactly (pre-norm, QK-norm, SwiGLU); Gemma 3 has two more norms a layer, and its GELU is
set to SiLU here. Variants: each of them eager and, where a C++ compiler is there, torch.compile.
"""

import argparse
import functools
import os
import shutil
import time

import measure
import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

COMMON = dict(
    vocab_size=measure.VOCAB,
    hidden_size=measure.WIDTH,
    intermediate_size=measure.MLP,
    num_hidden_layers=measure.DEPTH,
    num_attention_heads=measure.HEADS,
    num_key_value_heads=measure.HEADS,
    head_dim=measure.HEAD_DIM,
    sliding_window=measure.WINDOW,
    layer_types=["sliding_attention", "full_attention"] * (measure.DEPTH // 2),
    max_position_embeddings=measure.TIME,
    rms_norm_eps=measure.NORM_EPS,
    initializer_range=measure.INIT_STD,
    tie_word_embeddings=True,
    attention_dropout=0.0,
    use_cache=False,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
    attn_implementation="sdpa",
)


def gemma3() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": measure.ROPE_THETA}
    config = Gemma3TextConfig(
        hidden_activation="silu",
        query_pre_attn_scalar=measure.HEAD_DIM,
        rope_parameters={"sliding_attention": rope, "full_attention": rope},
        **COMMON,
    )
    return Gemma3ForCausalLM(config)


def qwen3() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": measure.ROPE_THETA}
    return Qwen3ForCausalLM(
        Qwen3Config(hidden_act="silu", use_sliding_window=True, rope_parameters=rope, **COMMON)
    )


def run(options: argparse.Namespace, build, compiled: bool) -> dict:
    torch.set_num_threads(measure.cores())
    torch.manual_seed(options.seed)
    matmul = matmul_flops()
    model = build().float().train()
    assert model.config._attn_implementation == "sdpa"
    adamw = adamw_seconds(model)
    optimizer = make_adamw(model, min(adamw, key=adamw.get))

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=inputs).logits
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)

    def train(tokens: np.ndarray) -> float:
        batch = torch.from_numpy(tokens).long()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), measure.CLIP_NORM)
        optimizer.step()
        return loss.item()

    start = time.perf_counter()
    if compiled:  # both graphs, on data of its own; no update
        batch = torch.zeros(measure.BATCH, measure.TIME, dtype=torch.long)
        loss_of(batch, batch).backward()
    compile_seconds = time.perf_counter() - start
    return {
        "cases": {"one document": measure.time_steps(train, options)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "matmul_flops": matmul,
        "compile_seconds": compile_seconds,
        "adamw_step_seconds": adamw,
        "threads": f"{torch.get_num_threads()} of PyTorch",
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": measure.versions("torch", "transformers", "numpy"),
    }


def make_adamw(model: torch.nn.Module, implementation: str) -> torch.optim.AdamW:
    """AdamW ("fused" or "foreach") with weight decay on the kernels of linear maps."""
    kernels = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    groups = [
        {"params": kernels, "weight_decay": measure.WEIGHT_DECAY},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=measure.LEARNING_RATE,
        betas=(measure.B1, measure.B2),
        eps=measure.ADAM_EPS,
        **{implementation: True},
    )


def adamw_seconds(model: torch.nn.Module) -> dict[str, float]:
    """Seconds of an update of parameters like the model's, by implementation."""
    seconds = {}
    for implementation in ("fused", "foreach"):
        copy = torch.nn.ParameterDict(
            {n.replace(".", "_"): p.detach().clone() for n, p in model.named_parameters()}
        )
        for parameter in copy.values():
            parameter.grad = torch.randn_like(parameter)
        seconds[implementation] = measure.best_seconds(make_adamw(copy, implementation).step)
    return seconds


def matmul_flops(size: int = 1024) -> float:
    x = torch.ones(size, size)
    return measure.matmul_flops(lambda: x @ x, size)


def has_cpp_compiler() -> bool:
    """Whether torch.compile can build its kernels (`CXX`, or a compiler on the PATH)."""
    return any(shutil.which(c) for c in (os.environ.get("CXX") or "c++", "g++", "clang++"))


BUILDS = {"Gemma 3": gemma3, "Qwen 3": qwen3}
MODES = {"eager": False, "torch.compile": True} if has_cpp_compiler() else {"eager": False}

if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    measure.main(
        __doc__,
        {
            f"{name}, {mode}": functools.partial(run, build=build, compiled=compiled)
            for mode, compiled in MODES.items()
            for name, build in BUILDS.items()
        },
    )
