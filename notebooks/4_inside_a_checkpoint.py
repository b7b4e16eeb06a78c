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
# # 4. Look inside a checkpoint
#
# This notebook opens a hybrid of Gated DeltaNet and Native Hybrid Attention (NHA) and reads what its layers keep of
# the past: NHA's slots, the states of the delta rule, and the exact attention matrix of each.
#
# Time: 3 minutes on a busy machine with 2 CPU cores (45 seconds of CPU time).

# %%
import os
import pathlib

import numpy as np
import treescope

from hybridlm.analysis import figures, open_model
from hybridlm.commands.full_run import full_run
from hybridlm.config import read

if pathlib.Path.cwd().name == "notebooks":
    os.chdir("..")  # paths are those of the clone's top folder
SMOKE = "HYBRIDLM_SMOKE" in os.environ  # the size of the tests: seconds, and nothing is learned
RUNS = pathlib.Path("runs/notebooks-smoke" if SMOKE else "runs/notebooks")
STEPS = 2 if SMOKE else 200
treescope.basic_interactive_setup(autovisualize_arrays=True)

# %% [markdown]
# ## A checkpoint
#
# If `WORKDIR` names no run, the next cell trains a small one. In a run of yours, the cells below read the first layers
# that its config names `gdn` (Gated DeltaNet) and `nha` (NHA). Other mixers have other names of activations:
# `model.hooks()` lists them.

# %%
WORKDIR = None  # or the folder of a run
config = read(
    dict(
        model=dict(
            width=64,
            depth=2,
            pattern="gdn nha",
            mixers=dict(
                gdn=dict(kind="gdn", heads=2, head_dim=16, value_dim=16),
                nha=dict(kind="nha", heads=2, slots=8, window=8),
            ),
            mlp=dict(hidden=128),
        ),
        data=dict(
            sources=dict(
                speeches=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
            ),
            seq_len=128,
            batch_size=8,
        ),
        optimizer=dict(lr=3e-3, warmup_steps=STEPS // 10),
        train=dict(steps=STEPS, log_every=STEPS // 2, eval_every=STEPS, checkpoint_every=STEPS),
    )
)
if WORKDIR is None:
    WORKDIR = RUNS / "inside"
    full_run(config, WORKDIR)

# %%
model = open_model(WORKDIR)
text = "My fellow citizens, the state of the Union"
tokens = model.strings(text)[0]
gdn, nha = (model.mixers.index(name) for name in ("gdn", "nha"))
for name, shape in model.hooks(text, states_at=(-1,)).items():
    if ".attn." in name:
        print(f"{name:40} {shape}")

# %% [markdown]
# One pass keeps the activations of both mixers, and their states after the tokens 4, 19, 20 and 40. For its
# states a mixer runs once more, in pieces that end at these tokens; each piece takes seconds to compile.

# %%
AFTER = (4, 19, 20, 40)
_, cache = model.run_with_cache(text, "blocks.*.attn.*", states_at=AFTER)
of_gdn, of_nha = (
    {n.rpartition(".")[2]: np.asarray(x)[0] for n, x in cache.items() if f".{layer}.attn.hook" in n}
    for layer in (gdn, nha)
)

# %% [markdown]
# ## NHA: slots and a window in one softmax
#
# NHA attends to the last 8 tokens one by one, and to 8 slots in which older tokens are merged. The slots' share of
# the softmax says how much of a query's attention is on them. Empty slots take part too, with a score and a value
# of 0, so before a token has left the window they are a sink: a share of 1 then means that a query reads nothing.

# %%
share = of_nha["hook_slot_share"]
print("share of the slots, [token, head]:", share.shape)
for i in range(0, len(tokens), 6):
    print(f"token {i:2} {tokens[i]!r:4}", share[i].round(2))

# %% [markdown]
# NHA is not linear in its keys, but it is linear in its values, slots included. So it has an exact attention matrix,
# which is the sum of that of the window and that of the slots. Look at the slots' matrix: it begins where the window
# ends.

# %%
parts = {
    part: np.asarray(model.effective_attention(text, nha, head=0, part=part))[0]
    for part in (None, "window", "slots")
}
print(
    "largest difference from the sum:", np.abs(parts[None] - parts["window"] - parts["slots"]).max()
)
figures.attention_map(parts["window"], tokens, title="NHA, head 0: the window")

# %%
figures.attention_map(parts["slots"], tokens, title="NHA, head 0: the slots")

# %% [markdown]
# A slot holds a moving average of the keys and values that were written to it. The picture shows the values of the 8
# slots of head 0 after the tokens in `AFTER`. After token 4 no token has left the window, so the slots are 0.

# %%
slots = of_nha["hook_state_v"]
print("[position, head, slot, value]:", slots.shape)
print("largest value after each position:", np.abs(slots[:, 0]).max(axis=(1, 2)).round(2))
treescope.render_array(slots[:, 0], axis_labels={0: "position", 1: "slot", 2: "value"})

# %% [markdown]
# ## The delta rule: writing is correcting
#
# Gated DeltaNet has a state S, a matrix from keys to values. A token first lets the state decay by a, then reads what
# its key k holds, and writes back b times the difference to its value v. So after the token, the key reads
# (1 - b) times the decayed old value plus b times the new one. The cell checks that on the states before and after
# token 20.

# %%
t = 20
states = of_gdn["hook_state"]  # [position, head, key, value]
k, v = of_gdn["hook_k"], of_gdn["hook_v"]  # [token, head, ...]
a, b = np.exp(of_gdn["hook_log_decay"]), of_gdn["hook_beta"]  # [token, head]
key = k[t] / np.linalg.norm(k[t], axis=-1, keepdims=True)
before, after = (np.einsum("hkv,hk->hv", states[AFTER.index(at)], key) for at in (t - 1, t))
expected = (1 - b[t])[:, None] * a[t][:, None] * before + b[t][:, None] * v[t]
print("largest error of the delta rule:", np.abs(after - expected).max())

# %% [markdown]
# How much does each token overwrite, and how much is forgotten? A head with a write strength near 1 replaces what a
# key held. A half-life says in how many tokens decay alone halves the state.

# %%
print("mean write strength by head:", b.mean(axis=0).round(2))
print("half-life in tokens by head:", model.half_lives(text)[f"blocks.{gdn}.attn"].round(1))
norms = np.linalg.norm(states, axis=(2, 3))  # as `model.state_norms` gives them
print("norm of the state after tokens 4 and 40, by head:\n", norms[[0, -1]].round(2))

# %% [markdown]
# ## Its exact attention
#
# The matrix below times the values is the output of the recurrence, and the cell checks it. An entry is negative
# where query and key point apart, or where a later token with a similar key has taken back what was written. Products
# of queries and keys alone, as they are often drawn for linear attention, do not show the second.

# %%
matrix = np.asarray(model.effective_attention(text, gdn, head=0))[0]
out = of_gdn["hook_recurrence_out"][:, 0]
print("largest error of matrix @ values:", np.abs(matrix @ v[:, 0] - out).max())
print(f"negative: {np.mean(matrix[np.tril_indices(len(tokens))] < 0):.0%} of the entries")
figures.attention_map(matrix, tokens, title="Gated DeltaNet, head 0")

# %%
for head in range(2):
    field = model.receptive_field(text, gdn, head=head)[0]
    print(f"head {head}: 90% of the last query's attention is on the last {field[-1]:.0f} tokens")
