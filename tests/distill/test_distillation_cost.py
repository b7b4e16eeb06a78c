"""The FLOPs that a step of distillation is said to take."""

import pytest

from hybridlm.distill.cost import distillation_cost
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from tests.distill.subjects import FULL
from tests.models.small import model_config

LENGTH = 24
WINDOW = dict(FULL, window=8)


def forward(config: ModelConfig, index: int) -> tuple[float, float]:
    """Of one token: the mixer of a layer, and its feed-forward."""
    mixer, mlp = config.layer_mixers()[index][1], config.layer_feedforwards()[index]
    return mixer.flops_per_token(config.width, LENGTH), mlp.flops_per_token(config.width)


@pytest.mark.parametrize("pattern, new", [("swa", range(4)), ("swa full", (0, 2))])
def test_blockwise_counts_no_gradient_of_what_the_new_mixers_read(pattern, new):
    """A mixer's queries, keys and values get gradients of their matrices, not of the layer's input."""
    teacher = model_config("full", depth=4, mixers=dict(full=FULL))
    mixers = dict(full=FULL, swa=WINDOW) if "full" in pattern else dict(swa=WINDOW)
    student = model_config(pattern, depth=4, mixers=mixers)
    cost = distillation_cost("blockwise", teacher, Model.of(student))(LENGTH)
    of_teacher = sum(sum(forward(teacher, i)) for i in range(4))
    heads, size = FULL["heads"] + 2 * FULL["kv_heads"], student.width // FULL["heads"]
    gradient_of_input = 2 * student.width * heads * size
    trained = sum(3 * forward(student, i)[0] - gradient_of_input for i in new)
    assert cost == pytest.approx(of_teacher + trained)
    assert gradient_of_input > 0.1 * forward(student, 0)[0]


def test_kl_trains_the_whole_student():
    teacher = model_config("full", depth=4, mixers=dict(full=FULL))
    student = model_config("swa", depth=4, mixers=dict(swa=WINDOW))
    head = 2 * student.width * student.vocab_size
    passes = [sum(sum(forward(c, i)) for i in range(4)) + head for c in (teacher, student)]
    cost = distillation_cost("kl", teacher, Model.of(student))(LENGTH)
    assert cost == pytest.approx(passes[0] + 3 * passes[1])
