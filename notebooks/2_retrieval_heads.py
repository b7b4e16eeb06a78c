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
# # 2. Watch retrieval heads form
#
# A hybrid needs layers that find earlier tokens by their content. This notebook trains a small hybrid on text that
# repeats itself, keeps checkpoints, and measures every attention head at each of them. One head of a full layer
# turns into a retrieval head within some hundred steps, and the loss falls as it does.
#
# Time: 2 minutes on a busy machine with 2 CPU cores (1 minute of CPU time).

# %%
import json
import os
import pathlib
import string

import jax
import numpy as np

from hybridlm.analysis import Run, ablate, figures, open_model
from hybridlm.commands.full_run import full_run
from hybridlm.config import read
from hybridlm.probes import induction_heads, repeated_prompts

if pathlib.Path.cwd().name == "notebooks":
    os.chdir("..")  # paths are those of the clone's top folder
SMOKE = "HYBRIDLM_SMOKE" in os.environ  # the size of the tests: seconds, and nothing is learned
RUNS = pathlib.Path("runs/notebooks-smoke" if SMOKE else "runs/notebooks")
STEPS, EVERY = (2, 1) if SMOKE else (700, 50)
DEPTH, DOCUMENTS = (3, 200) if SMOKE else (5, 20_000)

# %% [markdown]
# ## The data
#
# A document is a random word of 5 to 31 letters, repeated to 64 letters. The first copy cannot be predicted. From
# the second letter of the second copy on, every letter can, by a model that looks up what followed the same letters
# before.

# %%
rng = np.random.default_rng(0)
letters = np.array([*string.ascii_lowercase])


def document() -> str:
    period = int(np.exp(rng.uniform(np.log(5), np.log(32))))
    return "".join(np.resize(rng.choice(letters, period), 64))


path = RUNS / "repeats.jsonl"
path.parent.mkdir(parents=True, exist_ok=True)
documents = [document() for _ in range(DOCUMENTS)]
path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
print(*documents[:5], sep="\n")

# %% [markdown]
# ## The model
#
# The first layer sees 4 tokens. Then layers with a window of 4 and layers with full attention alternate. A word is
# longer than the window, so only a full layer reaches the copy before in one step.

# %%
config = read(
    dict(
        model=dict(
            width=64,
            depth=DEPTH,
            prefix="near",
            pattern="window full",
            mixers=dict(
                near=dict(kind="attention", heads=2, window=4),
                window=dict(kind="attention", heads=2, window=4),
                full=dict(kind="attention", heads=2),
            ),
            mlp=dict(hidden=64),
        ),
        data=dict(
            sources=dict(repeats=dict(kind="jsonl", path=str(path))),
            seq_len=66,  # 64 letters, begin and end of the document
            batch_size=16,
            packing="best_fit",  # a document a row
        ),
        optimizer=dict(lr=1e-3, schedule="constant", warmup_steps=EVERY),
        train=dict(
            steps=STEPS,
            log_every=2 * EVERY,
            eval_every=EVERY,
            checkpoint_every=EVERY,
            keep_every=EVERY,  # keeps all checkpoints
        ),
    )
)
workdir = RUNS / "retrieval_heads"
_ = full_run(config, workdir)

# %% [markdown]
# The loss stays near that of random letters (ln 26 = 3.26 nats) and then falls. It cannot reach zero: the first copy
# of each word is random.

# %%
run = Run(workdir)
figures.learning_curves(run.metrics("eval"), x="step")

# %% [markdown]
# ## Every head at every checkpoint
#
# The score of a head is its attention to the right place: to the token that followed the same letter in the first
# copy (prefix matching, arXiv 2209.11895). The prompts are random words of 32 letters, twice.
# Look for the row whose score rises at the step where the loss falls.

# %%
model = open_model(workdir)
ids = model.opened.tokenizer.encode(string.ascii_lowercase)
others = set(range(model.config.vocab_size)) - set(ids.tolist())
prompts = repeated_prompts(model.config.vocab_size, 64, samples=16, seed=1, without=others)
scores = []
for step in run.checkpoints:
    table = induction_heads(model.model, model.at(step).params, prompts)
    scores += [{"step": step, **row} for row in table.rows()]
figures.head_map(scores, score="score")

# %%
best = max((row for row in scores if row["step"] == run.checkpoints[-1]), key=lambda r: r["score"])
layer, head = best["layer"], best["head"]
print(f"the best head is {layer}.{head}, in a layer {best['mixer']!r}: {best['score']:.2f}")

# %% [markdown]
# ## What it does
#
# In the pattern of this head on a word that it has never seen, the second copy looks one token past the same letter
# of each earlier copy: lines parallel to the diagonal.

# %%
text = "qwmzkfjrbnxt" * 3
attention = model.attention(text, range(len(model.mixers)))
figures.attention_map(
    attention[layer][0, head], model.strings(text)[0], title=f"head {layer}.{head}"
)

# %% [markdown]
# ## Does the model need it?
#
# An ablation removes one head. Without the retrieval head, the loss of the later copies should go back towards that
# of random letters; without another head of the same layer, it should change less.

# %%
tokens = model.tokens(text)
copies = slice(13, 36)  # the queries whose answer stands in an earlier copy


def loss(logits: jax.Array) -> float:
    log_probs = jax.nn.log_softmax(logits[0, copies])
    answers = tokens[0, copies.start + 1 : copies.stop + 1]
    return -float(np.take_along_axis(np.asarray(log_probs), answers[:, None], axis=1).mean())


print(f"all heads          {loss(model.logits(text)):.2f} nats")
for other in (head, 1 - head):
    edited = model.run_with_hooks(text, {f"blocks.{layer}.attn.hook_z": ablate(heads=other)})
    print(f"without head {layer}.{other}   {loss(edited):.2f} nats")

# %% [markdown]
# ## Which layers it depends on
#
# A retrieval head needs to know, at each token, which letter came before. Below is how much each head attends one
# token back. Look at the layers below the retrieval head.

# %%
for i, name in enumerate(model.mixers):
    back = [np.diagonal(pattern, -1).mean() for pattern in attention[i][0]]
    print(f"layer {i} ({name:6}): {', '.join(f'{x:.2f}' for x in back)}")

# %% [markdown]
# ## Next
#
# Is the head in a full layer because only full layers reach so far in one step? The
# [next notebook](3_laziness.py) gives the window layers a larger window.
