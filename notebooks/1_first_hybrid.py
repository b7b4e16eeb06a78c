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
# # 1. A first hybrid in ten minutes
#
# This notebook defines a hybrid language model, shows what it costs, trains it on real text, and looks inside.
# The model has three kinds of layers: attention with a window, full attention without positions (NoPE), and a
# recurrence (Gated DeltaNet).
#
# Time: 5 minutes on a busy machine with 2 CPU cores (2 minutes of CPU time), most of it training.

# %%
import os
import pathlib

import treescope

from hybridlm.analysis import Run, figures, open_model, rows
from hybridlm.commands.full_run import full_run
from hybridlm.config import read

if pathlib.Path.cwd().name == "notebooks":
    os.chdir("..")  # paths are those of the clone's top folder
SMOKE = "HYBRIDLM_SMOKE" in os.environ  # the size of the tests: seconds, and nothing is learned
RUNS = pathlib.Path("runs/notebooks-smoke" if SMOKE else "runs/notebooks")
STEPS, EVERY = (4, 2) if SMOKE else (300, 100)
WIDTH, DEPTH, LENGTH = (32, 3, 64) if SMOKE else (96, 6, 256)

# %% [markdown]
# ## A config
#
# Each mixer is defined once, by name. The pattern arranges the names from the lowest layer up, and repeats until
# `depth` is reached. [docs/mixers.md](../docs/mixers.md) lists all mixers, [docs/config.md](../docs/config.md) all
# settings.

# %%
settings = dict(
    model=dict(
        width=WIDTH,
        depth=DEPTH,
        pattern="near gdn far",
        mixers=dict(
            near=dict(kind="attention", heads=2, window=16),
            gdn=dict(kind="gdn", heads=2, head_dim=16, value_dim=16),
            far=dict(kind="attention", heads=2, rope=None),
        ),
        mlp=dict(hidden=2 * WIDTH),
    ),
    data=dict(
        sources=dict(speeches=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")),
        seq_len=LENGTH,
        batch_size=8,
        bigram_baseline=True,
    ),
    optimizer=dict(lr=3e-3, warmup_steps=STEPS // 10),
    train=dict(
        steps=STEPS,
        log_every=EVERY // 2,
        eval_every=EVERY,
        checkpoint_every=EVERY,
    ),
)
config = read(settings)

# %% [markdown]
# A wrong setting is an error of one sentence, before any device is used.

# %%
wrong = dict(settings, optimizer=dict(lr=3e-3, warmup=20))
try:
    read(wrong)
except Exception as error:
    print(error)

# %% [markdown]
# ## What it costs
#
# Look at the shaded bars: a window sees 16 tokens back, full attention sees all, and a recurrence has a state of
# fixed size instead. The second figure shows what that means for decoding: only the caches of full attention grow
# with the context.

# %%
figures.layer_pattern(
    rows.layer_rows(config.model, config.data.seq_len), length=config.data.seq_len
)

# %%
figures.state_sizes(rows.state_rows(config.model))

# %% [markdown]
# ## Training
#
# `full_run` does what `hybridlm train` does: it trains in a workdir, resumes a run that is there, and writes a
# report. Run this cell again: the run is complete, so nothing trains. Lines on a red ground are progress, not errors.

# %%
workdir = RUNS / "first_hybrid"
_ = full_run(config, workdir)

# %% [markdown]
# ## What it learned
#
# `Run` opens the records of a workdir as pandas tables. The held-out loss should end below the dashed line, that
# of a model which knows pairs of bytes.

# %%
run = Run(workdir)
run.metrics("eval")[["step", "tokens", "flops", "loss", "bits_per_byte"]]

# %%
bigram = run.facts["bigram"]["bits_per_byte"]
figures.loss_curve(run.metrics(), run.metrics("eval"), bigram)

# %% [markdown]
# A language model uses its context if later positions are easier than early ones.

# %%
figures.loss_by_position(run.by_position())

# %%
model = open_model(workdir)
prompt = "My fellow citizens, "
print(prompt + model.generate(prompt, LENGTH // 2, temperature=0.7))

# %% [markdown]
# ## A look inside
#
# Every activation has a name. Below is the pattern of a head with a window and of a head that sees all: rows are
# queries, columns are keys. The first token, without a letter, is the beginning of the document.

# %%
text = "My fellow citizens, the state of the Union"
layers = {name: model.mixers.index(name) for name in ("near", "far")}
_, cache = model.run_with_cache(text, "blocks.*.attn.hook_pattern")
tokens = model.strings(text)[0]
near = cache[f"blocks.{layers['near']}.attn.hook_pattern"]
print(near.shape, "is [batch, head, query, key]")
figures.attention_map(near[0, 0], tokens, title="layer 0, head 0: a window")

# %%
far = cache[f"blocks.{layers['far']}.attn.hook_pattern"]
figures.attention_map(far[0, 0], tokens, title=f"layer {layers['far']}, head 0: full attention")

# %% [markdown]
# Gated DeltaNet has no pattern, but it is linear in its values once its gates are given, so it has an exact
# attention matrix. Its entries may be negative: the delta rule removes what a key held before.

# %%
effective = model.effective_attention(text, model.mixers.index("gdn"), head=0)
figures.attention_map(effective[0], tokens, title="layer 1, head 0: Gated DeltaNet")

# %% [markdown]
# ## Parameters
#
# treescope folds the tree of parameters and shows the arrays as pictures. Layers that repeat are stacked in one
# array; `model.model.by_name` and `run.checkpoint()` know each by its own name.

# %%
treescope.basic_interactive_setup(autovisualize_arrays=True)
model.params

# %%
checkpoint = run.checkpoint()
names = checkpoint.names("layers.1.*")
print(f"{len(checkpoint)} arrays; those of layer 1:", *names, sep="\n  ")
print(checkpoint["layers.0.mixer.q.kernel"].shape)

# %% [markdown]
# ## Next
#
# The report of the run is one HTML file: `runs/notebooks/first_hybrid/report.html`. The
# [next notebook](2_retrieval_heads.py) watches attention heads form while a model trains.
