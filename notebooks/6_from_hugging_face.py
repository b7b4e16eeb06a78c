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
# # 6. From a Hugging Face model to a hybrid
#
# This notebook opens a checkpoint in the format of transformers, replaces half of its attention by Gated DeltaNet,
# keeps what can be copied, calibrates the rest, and trains the new layers to imitate the old ones. Neither torch nor
# transformers is needed.
#
# Time: 1 minute on a busy machine with 2 CPU cores (30 seconds of CPU time).

# %%
import gzip
import json
import os
import pathlib

import jax
import numpy as np

from hybridlm import convert
from hybridlm.analysis import Inspected, figures, open_model, rows
from hybridlm.commands.full_run import full_run
from hybridlm.config import read, to_dict
from hybridlm.data import train_bpe
from hybridlm.distill.calibrate import calibrate, text_batches
from hybridlm.distill.transfer import transfer
from hybridlm.runs import save_model

if pathlib.Path.cwd().name == "notebooks":
    os.chdir("..")  # paths are those of the clone's top folder
SMOKE = "HYBRIDLM_SMOKE" in os.environ  # the size of the tests: seconds, and nothing is learned
RUNS = pathlib.Path("runs/notebooks-smoke" if SMOKE else "runs/notebooks") / "hugging_face"
STEPS = 4 if SMOKE else 200
CORPUS = "data/corpora/state_of_the_union.jsonl.gz"
CHECKPOINT = None  # or the folder of a checkpoint with its tokenizer.json, such as SmolLM2-135M

# %% [markdown]
# ## A checkpoint
#
# Nothing is downloaded here. If `CHECKPOINT` names no folder, the next cells make a small one: a byte-level BPE
# tokenizer and a transformer of Llama's form, trained for some steps and exported as `LlamaForCausalLM`.

# %%
with gzip.open(CORPUS, "rt") as file:
    speeches = [json.loads(line)["text"] for line in file]
RUNS.mkdir(parents=True, exist_ok=True)


def settings(model: dict, tokenizer: pathlib.Path, folder: pathlib.Path, **more) -> dict:
    """A run on the speeches; their tokens go to `folder`."""
    return dict(
        model=model,
        data=dict(
            sources=dict(speeches=dict(kind="jsonl", path=CORPUS)),
            tokenizer=dict(kind="hf", path=str(tokenizer)),
            token_cache=str(folder / "tokens"),
            seq_len=64,
            batch_size=8,
        ),
        train=dict(
            steps=STEPS, log_every=STEPS // 2, eval_every=STEPS // 2, checkpoint_every=STEPS
        ),
        **more,
    )


# %%
if CHECKPOINT is None:
    tokenizer = RUNS / "tokenizer.json"
    if not tokenizer.exists():
        train_bpe(speeches[:4] if SMOKE else speeches, 512, tokenizer)
    llama = dict(
        width=64,
        depth=4,
        pattern="full",
        mixers=dict(full=dict(kind="attention", heads=4, kv_heads=2)),
        mlp=dict(hidden=128),
    )
    optimizer = dict(lr=3e-3, warmup_steps=STEPS // 10)
    full_run(read(settings(llama, tokenizer, RUNS, optimizer=optimizer)), RUNS / "teacher_run")
    trained = open_model(RUNS / "teacher_run").opened
    CHECKPOINT = RUNS / "llama"
    if not CHECKPOINT.exists():
        convert.export(
            trained.model, trained.params, CHECKPOINT, tokenizer=trained.tokenizer, length=64
        )
CHECKPOINT = pathlib.Path(CHECKPOINT)
OWN = RUNS / "students" / CHECKPOINT.resolve().name  # each checkpoint has its own students
print(*sorted(path.name for path in CHECKPOINT.iterdir()))
print((CHECKPOINT / "config.json").read_text()[:400])

# %% [markdown]
# ## The teacher
#
# `open_model` reads the folder as it reads a run, and everything of the other notebooks works on it.

# %%
teacher = open_model(CHECKPOINT)
print(teacher.config.layout.labels)
print(teacher.generate("My fellow citizens", 8 if SMOKE else 40, temperature=0.7))

# %% [markdown]
# ## The student
#
# Every second layer gets Gated DeltaNet. Its queries, keys, values and output are copied from attention; decay,
# write strength and gates have no counterpart and start fresh.

# %%
layers = range(1, teacher.config.depth, 2)
made = transfer(teacher.opened, dict(kind="gdn"), layers)
print("\n".join(made.describe()))

# %%
figures.layer_pattern(rows.layer_rows(made.student.config, 64), length=64)

# %% [markdown]
# ## Calibration
#
# A few batches of text fit the fresh parameters, so that each new layer gives what the old one gave. Compare the
# error of each layer before and after.

# %%
text = speeches[0]
batches = text_batches(teacher.opened, text, tokens=1024 if SMOKE else 8192, length=64)
fitted = calibrate(teacher.opened, made, batches, steps=2 if SMOKE else 50)
for layer in made.layers:
    print(f"layer {layer}: error {fitted.before[layer]:.2f} -> {fitted.after[layer]:.2f}")

# %% [markdown]
# ## Block by block
#
# A run with a teacher and the objective "blockwise" trains only the new mixers, each to give what the teacher's layer
# gives for the teacher's input.

# %%
student_folder = OWN / "start"
if not student_folder.exists():
    save_model(fitted.student, student_folder)
distilled = settings(
    to_dict(fitted.student.config),
    CHECKPOINT / "tokenizer.json",
    OWN,
    optimizer=dict(lr=1e-3, warmup_steps=STEPS // 10, weight_decay=0.0),
    init=dict(path=str(student_folder)),
    teacher=dict(path=str(CHECKPOINT), objective="blockwise"),
)
_ = full_run(read(distilled), OWN / "blockwise")


# %% [markdown]
# ## What each step gained
#
# How far are the students' predictions from the teacher's, on the first 2,000 characters of a speech? The run above
# may have trained on that speech, so this is no test on new text. `fresh` is a student whose new layers copy nothing.
# Look at the divergence. The loss of the small teacher above hardly depends on these two layers, because it has
# trained for so few steps; that of a real checkpoint does.


# %%
def log_probs(model: Inspected) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(model.logits(rows_of_64)[:, :-1]))


speech = speeches[-1]
tokens = teacher.tokens(speech[:2000])[0]
rows_of_64 = tokens[: len(tokens) // 64 * 64].reshape(-1, 64)
wanted = log_probs(teacher)
models = {
    "teacher": teacher,
    "student, fresh": Inspected(
        transfer(teacher.opened, dict(kind="gdn"), layers, copy=False).student
    ),
    "student, copied": Inspected(made.student),
    "student, calibrated": Inspected(fitted.student),
    "student, distilled block by block": open_model(OWN / "blockwise"),
}
for name, model in models.items():
    found = log_probs(model)
    divergence = (np.exp(wanted) * (wanted - found)).sum(-1).mean()
    loss = -np.take_along_axis(found, rows_of_64[:, 1:, None], axis=-1).mean()
    print(f"{name:35} divergence {divergence:.4f}, loss {loss:.3f} nats")

# %% [markdown]
# ## The same layer before and after
#
# Attention of layer 1 in the teacher, and the exact attention matrix of the Gated DeltaNet in its place.

# %%
sentence = "the people of the United States and the Congress of the United States"
tokens = teacher.strings(sentence)[0]
figures.attention_map(
    teacher.attention(sentence, 1)[0, 0], tokens, title="teacher, layer 1, head 0"
)

# %%
student = models["student, distilled block by block"]
matrix = student.effective_attention(sentence, 1, head=0)
figures.attention_map(matrix[0], tokens, title="student, layer 1, head 0")

# %% [markdown]
# ## Next
#
# [docs/distill.md](../docs/distill.md): towards the teacher's probabilities (`objective="kl"`), which layers to
# replace (`hybridlm distill select`), and which hybrids can be exported again.
