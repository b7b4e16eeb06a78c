"""HALO's conversion of Qwen3-1.7B to a hybrid with Lightning attention at its budget of 2.3B tokens.

The argument is "stage=1", "stage=2" or "stage=3" (arXiv 2601.22156; its stage 0 is the transfer):
  1  blockwise, 320M tokens of 512: every layer's Lightning mixer learns the attention's output
  2  towards the teacher's probabilities, 1B tokens of 512, with 7 of 28 layers of attention and HyPE
  3  finetuning, 1B tokens of 16,384
The layers that keep attention are those that its authors' scores choose (docs/selection.md). Not as there: the
attention has no output gate and keeps its shared key/value heads, and the text is this repository's, in the
place of FineWeb-Edu. The authors give no schedule's end for stage 3, whose rate is constant.

Hardware: the authors took 91 hours of an A800 of 80 GB (10.0, 43.4 and 37.7). Not run here.
Expected: the paper's hybrid keeps 95% needles at 8K; README.md has these configs' cost.
Run:      hybridlm train --config experiments/distill_then_replace/halo.py:stage=1 --workdir runs/halo/1, after
          `hybridlm distill transfer checkpoints/qwen3_1_7b --mixer lightning --out checkpoints/qwen3_1_7b-lightning`;
          then stage=2, after `hybridlm distill select` with --keep 7 into runs/halo/selected, and `hybridlm
          distill hype runs/halo/selected/halo --scale 500 --out runs/halo/hybrid`; then stage=3
"""

from ml_collections import ConfigDict

from experiments.distill_then_replace.papers import CHECKPOINTS, data, teacher
from hybridlm.distill.compose import composed_config
from hybridlm.distill.hype import hype_config
from hybridlm.distill.transfer import student_config
from hybridlm.models.settings import ModelConfig
from hybridlm.settings.plain import to_dict

NAME = "qwen3_1_7b"
KEPT = (2, 3, 6, 8, 9, 21, 25)
LOGIT_SCALE = 500.0  # of HypeNet-2B
#: By stage: steps, tokens of a sequence, sequences, parts of a batch, rate, and the last rate over it.
STAGES = {
    1: (20_000, 512, 32, 1, 1e-3, 0.01),
    2: (20_000, 512, 96, 4, 1e-4, 0.1),
    3: (500, 16_384, 128, 128, 1e-5, 1.0),
}


def student() -> ModelConfig:
    """Lightning attention in every layer."""
    return student_config(teacher(NAME), dict(kind="lightning"))


def hybrid() -> ModelConfig:
    """The layers of KEPT have attention without RoPE."""
    return hype_config(composed_config(teacher(NAME), student(), KEPT), LOGIT_SCALE)


def get_config(arg: str = "") -> ConfigDict:
    stage = int(dict(item.split("=", 1) for item in arg.split(",") if item).get("stage", 1))
    steps, length, batch, parts, rate, last = STAGES[stage]
    c = ConfigDict()
    c.model = to_dict(student() if stage == 1 else hybrid())
    c.data = data(NAME, length, batch)
    c.optimizer = dict(
        lr=rate,
        schedule="cosine",
        warmup_steps=50,
        final_lr_fraction=last,
        weight_decay=0.0,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
    )
    c.train = dict(
        steps=steps,
        dtype="bfloat16",
        accumulate=parts,
        remat="full" if stage > 1 else "none",
        eval_every=min(1000, steps),
        checkpoint_every=min(500, steps),
    )
    starts = {1: CHECKPOINTS / f"{NAME}-lightning", 2: "runs/halo/hybrid", 3: "runs/halo/2"}
    c.init = dict(path=str(starts[stage]))
    if stage < 3:
        objective = "blockwise" if stage == 1 else "kl"
        published = to_dict(teacher(NAME))
        path = str(CHECKPOINTS / NAME)
        c.teacher = dict(path=path, objective=objective, dtype="bfloat16", model=published)
    return c
