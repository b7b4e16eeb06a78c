# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Write your own mixer and let the laws judge it
#
# This notebook defines a mixer in two short classes, checks it by nine laws that every mixer of the library
# obeys, plants two common faults to see the laws catch them, and trains a hybrid with it.
#
# Time: 4 minutes on a busy machine with 2 CPU cores (1 minute of CPU time), most of it compilation.

# %%
import os
import pathlib
from typing import ClassVar

# Each program of a law runs once, so that compiling it fast is better than running it fast.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.analysis import Run, figures, open_model
from hybridlm.commands.full_run import full_run
from hybridlm.config import read
from hybridlm.models.layers import Linear
from hybridlm.models.mixers import LayerSpec, Mixer, MixerConfig, SequenceContext, register
from hybridlm.models.mixers.laws import judge
from hybridlm.parallel import ops
from hybridlm.settings.bounds import PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas import gated_linear

if pathlib.Path.cwd().name == "notebooks":
    os.chdir("..")  # paths are those of the clone's top folder
SMOKE = "HYBRIDLM_SMOKE" in os.environ  # the size of the tests: seconds, and nothing is learned
RUNS = pathlib.Path("runs/notebooks-smoke" if SMOKE else "runs/notebooks")
STEPS = 4 if SMOKE else 100

# %% [markdown]
# ## The settings
#
# The mixer is linear attention with one decay for each head, which every token sets for itself:
# S_t = a_t S_{t-1} + k_t v_t^T, and o_t = S_t^T q_t. The class of its settings says what it costs, so that reports and
# dry runs count it right, and refuses a width that it does not fit. `register` makes the kind known to configs in
# this process.


# %%
@register
@settings
class ForgetfulConfig(MixerConfig):
    """Linear attention with a decay that each token sets for each head.

    Attributes:
      heads: heads of query, key and value; they divide the width.
    """

    kind_name: ClassVar[str] = "forgetful"
    head_settings: ClassVar[tuple[str, ...]] = ("heads",)
    equation: ClassVar[str] = "S_t = a_t S_{t-1} + k_t v_t^T, o_t = S_t^T q_t"
    source: ClassVar[str] = "this notebook"
    operations: ClassVar[tuple[str, ...]] = ("gated_linear",)

    heads: PositiveInt = 2

    def check_width(self, width: int) -> None:
        fits = width % self.heads == 0
        require(fits, "heads", f"is {self.heads} and does not divide model.width {width}")

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> Mixer:
        return Forgetful(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        return 2 * width * (4 * width + self.heads) + 4 * width * width // self.heads

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        return 4 * width * width // self.heads


# %% [markdown]
# ## The module
#
# `extend` continues from a state by any number of tokens; `__call__` is the same without a state. The operation
# comes from the library, with its kernels and its document boundaries. `context.hook` names what an analysis may read.


# %%
class Forgetful(Mixer):
    """The mixer of `ForgetfulConfig`."""

    def __init__(self, config: ForgetfulConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width = spec.width
        self.heads, self.size = config.heads, width // config.heads
        self.q = Linear(width, width, ("embed", "heads"), rngs=rngs)
        self.k = Linear(width, width, ("embed", "heads"), rngs=rngs)
        self.v = Linear(width, width, ("embed", "heads"), rngs=rngs)
        self.decay = Linear(width, config.heads, ("embed", "heads"), rngs=rngs)
        self.out = Linear(width, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)

    def init_state(self, batch, max_len, dtype):
        wide = jnp.promote_types(dtype, jnp.float32)
        return gated_linear.empty_state(batch, self.heads, self.size, self.size, wide)

    def __call__(self, x_BTD, context):
        return self.extend(x_BTD, context, None)[0]

    def extend(self, x_BTD, context, state):
        def heads(name, x_BTI):
            return context.hook(name, x_BTI.reshape(*x_BTI.shape[:2], self.heads, self.size))

        wide = jnp.promote_types(x_BTD.dtype, jnp.float32)
        log_decay_BTH = -jax.nn.softplus(-self.decay(x_BTD).astype(wide) - 2.0)  # log sigmoid
        o_BTHV, state = ops.gated_linear(
            heads("hook_q", self.q(x_BTD)),
            heads("hook_k", self.k(x_BTD)),
            heads("hook_v", self.v(x_BTD)),
            context.hook("hook_log_decay", log_decay_BTH),
            segment_ids=self.documents(context),
            scale=self.size**-0.5,
            initial_state=state,
            return_state=True,
        )
        o_BTHV = context.hook("hook_recurrence_out", o_BTHV)
        return self.out(o_BTHV.reshape(x_BTD.shape)), state

    def documents(self, context: SequenceContext) -> jax.Array:
        return context.segment_ids_BT


# %% [markdown]
# ## The laws
#
# Each law is checked in float64 on inputs, parameters and document boundaries drawn afresh. `packed = separate` says
# that a document's outputs and gradients do not change when others are packed around it; `decode = whole` that
# decoding token by token gives the outputs of training; `causal` that no token sees a later one. These are the laws of
# `kernels_pallas.testing.LAWS`; the library checks its own mixers on two more, agreement in bfloat16 and over several
# devices.

# %%
laws = ["packed = separate"] if SMOKE else None
for verdict in judge(dict(kind="forgetful"), laws):
    print(f"{verdict}   ({verdict.seconds:.0f} s)")

# %% [markdown]
# ## Two faults
#
# The first mixer forgets to tell the operation where documents end. In training it would run, and its loss
# would look fine: only its state would carry text from one document into the next.


# %%
@register
@settings
class LeakyConfig(ForgetfulConfig):
    kind_name: ClassVar[str] = "leaky"

    def build(self, spec, *, rngs):
        return Leaky(self, spec, rngs=rngs)


class Leaky(Forgetful):
    def documents(self, context):
        return jnp.ones_like(context.segment_ids_BT)  # the fault: one document a row


for verdict in judge(dict(kind="leaky"), ["packed = separate"]):
    print(verdict)

# %% [markdown]
# The second mixes each token with the one before it (a token shift, as in RWKV), but keeps no last token in its
# state. The outputs of training are right; decoding is wrong from the first token on.


# %%
@register
@settings
class ShiftedConfig(ForgetfulConfig):
    kind_name: ClassVar[str] = "shifted"

    def build(self, spec, *, rngs):
        return Shifted(self, spec, rngs=rngs)


class Shifted(Forgetful):
    def extend(self, x_BTD, context, state):
        before_BTD = jnp.pad(x_BTD[:, :-1], ((0, 0), (1, 0), (0, 0)))  # the fault: 0 at each call
        first_BT = context.positions_BT == 0
        shifted_BTD = (x_BTD + jnp.where(first_BT[..., None], 0, before_BTD)) / 2
        return super().extend(shifted_BTD, context, state)


for verdict in judge(
    dict(kind="shifted"), ["decode = whole"] if SMOKE else ["packed = separate", "decode = whole"]
):
    print(verdict)

# %% [markdown]
# ## A hybrid with it
#
# The kind works in configs, in the stack of layers, in reports and in analysis, as those of the library do.

# %%
config = read(
    dict(
        model=dict(
            width=64,
            depth=2,
            pattern="mine full",
            mixers=dict(mine=dict(kind="forgetful"), full=dict(kind="attention", heads=2)),
            mlp=dict(hidden=128),
        ),
        data=dict(
            sources=dict(
                speeches=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
            ),
            seq_len=128,
            batch_size=8,
        ),
        optimizer=dict(lr=3e-3, warmup_steps=STEPS // 4),
        train=dict(steps=STEPS, log_every=STEPS // 2, eval_every=STEPS, checkpoint_every=STEPS),
    )
)
workdir = RUNS / "own_mixer"
_ = full_run(config, workdir)

# %% [markdown]
# Because the module names its values and its outputs, its exact attention matrix and the half-lives of its decays
# are there too.

# %%
model = open_model(workdir)
text = "My fellow citizens, the state of the Union"
matrix = model.effective_attention(text, layer=0, head=0)
figures.attention_map(matrix[0], model.strings(text)[0], title="the new mixer, head 0")

# %%
print("half-lives in tokens, by head:", model.half_lives(text)["blocks.0.attn"].round(1))
Run(workdir).metrics("eval")[["step", "loss", "bits_per_byte"]]

# %% [markdown]
# ## Into the library
#
# [CONTRIBUTING.md](../CONTRIBUTING.md) says which files a mixer takes. Small variants in `tests/models/small.py`
# make every law run on it.
