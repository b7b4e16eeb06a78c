"""Transfer: what is copied is the teacher's, and a mixer that can be the attention is it."""

import pathlib

import numpy as np
import pytest

from hybridlm.distill.kinds import KINDS
from hybridlm.distill.transfer import read_layers, student_config, transfer
from hybridlm.errors import UserError
from hybridlm.runs import open_model, save_model
from tests.distill.subjects import FULL, opened, teacher, tokens
from tests.models.small import model_config

FIXTURES = pathlib.Path(__file__).parents[1] / "convert" / "fixtures"


def test_the_same_attention_is_the_teacher_bit_for_bit():
    ours = teacher(qk_norm=True, bias="qkv", output_gate=True)
    found = transfer(ours, dict(kind="attention"), (0, 2))
    assert not found.fresh and not found.dropped
    np.testing.assert_array_equal(found.student.logits(tokens()), ours.logits(tokens()))


def test_native_hybrid_attention_that_keeps_all_tokens_is_the_attention():
    ours = teacher()
    found = transfer(ours, dict(kind="nha", window=None, empty_slots="masked", slots=8))
    np.testing.assert_allclose(found.student.logits(tokens()), ours.logits(tokens()), atol=2e-5)


@pytest.mark.slow
def test_a_window_longer_than_the_text_changes_nothing():
    ours = teacher(bias=True)
    found = transfer(ours, dict(kind="attention", window=24), (1,))
    np.testing.assert_allclose(found.student.logits(tokens()), ours.logits(tokens()), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_parameter_is_copied_or_fresh_with_a_reason(kind):
    ours = teacher(bias="qkv", qk_norm=True)
    found = transfer(ours, dict(kind=kind), (1, 3), seed=5)
    theirs = found.student.model.by_name(found.student.params)
    mixers = {n for n in theirs if n.startswith(("layers.1.mixer.", "layers.3.mixer."))}
    assert {*found.copied, *found.fresh} == mixers and not {*found.copied} & {*found.fresh}
    assert all(found.fresh.values())
    for name, value in ours.model.by_name(ours.params).items():
        if name not in mixers and ".mixer." not in name:
            np.testing.assert_array_equal(theirs[name], value, err_msg=name)


@pytest.mark.parametrize("kind", ["gdn", "lightning"])
def test_shared_heads_are_copied_for_each_query_head(kind):
    ours = teacher()
    found = transfer(ours, dict(kind=kind)).student
    old = ours.model.layer(ours.params, 2)["mixer"]
    new = found.model.layer(found.params, 2)["mixer"]
    np.testing.assert_array_equal(new["q"]["kernel"], old["q"]["kernel"])
    np.testing.assert_array_equal(new["out"]["kernel"], old["out"]["kernel"])
    for name in "kv":
        by_head = old[name]["kernel"].reshape(32, 2, 8)
        for head in range(4):
            part = new[name]["kernel"][:, 8 * head : 8 * head + 8]
            np.testing.assert_array_equal(part, by_head[:, head // 2])


@pytest.mark.slow
def test_mamba_2_reads_with_queries_and_writes_with_keys():
    ours = teacher(kv_heads=4)
    found = transfer(ours, dict(kind="mamba2")).student
    old = ours.model.layer(ours.params, 0)["mixer"]
    new = found.model.layer(found.params, 0)["mixer"]
    both = np.concatenate([old["k"]["kernel"], old["q"]["kernel"]], axis=1)
    np.testing.assert_array_equal(new["shared"]["kernel"], both)
    np.testing.assert_array_equal(new["value"]["kernel"], old["v"]["kernel"])


@pytest.mark.parametrize(
    "mixer, names, times",
    [
        (dict(kind="delta_product", updates=3), dict(q="q", k="k", v="v"), 3),
        (dict(kind="rwkv7"), dict(q="r", k="k", v="v"), 1),
        (dict(kind="mamba3"), dict(q="query", k="key", v="value"), 1),
        pytest.param(
            dict(kind="mamba3", rank=2, groups=2),
            dict(k="key", v="value"),
            1,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["delta_product", "rwkv7", "mamba3", "mamba3 of rank 2"],
)
def test_every_recurrence_starts_with_the_teacher_s_projections(mixer, names, times):
    """Heads of keys and values are copied for each query head, and for each update of a token."""
    ours = teacher(depth=1)
    found = transfer(ours, mixer)
    old = ours.model.layer(ours.params, 0)["mixer"]
    new = found.student.model.layer(found.student.params, 0)["mixer"]
    np.testing.assert_array_equal(new["out"]["kernel"], old["out"]["kernel"])
    for name, theirs in names.items():
        kernel = old[name]["kernel"].reshape(32, -1, 8)
        if "rank" in mixer and name == "k":  # two groups, which are the two key heads, of each rank
            wanted = np.concatenate([kernel, kernel], axis=1)
        else:
            each = 4 // kernel.shape[1] * (1 if name == "q" else times)
            wanted = np.repeat(kernel, each, axis=1)
        np.testing.assert_array_equal(new[theirs]["kernel"].reshape(wanted.shape), wanted)
    if mixer["kind"] == "rwkv7":  # the token before has no share
        assert all((share == 0).all() for share in new["mix"].values())
    if mixer["kind"] == "mamba3":
        assert (new["query_bias"] == 0).all() and (new["key_bias"] == 0).all()


def test_slots_gates_start_as_the_key_projection():
    ours = teacher()
    found = transfer(ours, dict(kind="nha", slots=5)).student
    k = ours.model.layer(ours.params, 1)["mixer"]["k"]["kernel"].reshape(32, 2, 8)
    gate = found.model.layer(found.params, 1)["mixer"]["gate"]["kernel"].reshape(32, 2, 5)
    np.testing.assert_array_equal(gate, k[..., :5])


def test_heads_of_another_size_start_fresh_and_say_so():
    found = transfer(teacher(), dict(kind="gdn", heads=4, head_dim=6, value_dim=8))
    assert found.fresh["layers.0.mixer.q.kernel"].startswith("the teacher's heads")
    assert "layers.0.mixer.v.kernel" in found.copied
    assert "layers.0.mixer.q.kernel" in found.dropped
    assert "starts fresh: mixer.q.kernel in layers 0-3" in "\n".join(found.describe())


@pytest.mark.parametrize("form, offset", [("unit_offset", 1), (True, 0)])
def test_norms_of_queries_and_keys_keep_their_factor(form, offset):
    ours = teacher(depth=1, qk_norm=form)
    found = transfer(ours, dict(kind="lightning")).student
    plain = transfer(ours, dict(kind="attention", qk_norm=True)).student
    old = ours.model.layer(ours.params, 0)["mixer"]
    for student in (found, plain):
        new = student.model.layer(student.params, 0)["mixer"]
        for name in ("q_norm", "k_norm"):
            np.testing.assert_array_equal(new[name]["scale"], old[name]["scale"] + offset)


UNEVEN = dict(head_dim=8, value_dim=4, value_scale=0.7, bias="qkv", qk_norm=False)


@pytest.mark.parametrize("kind", ["gdn", "mamba2", "mlstm"])
def test_values_of_another_size_and_scale_are_the_teacher_s(kind):
    """As MiMo-V2's, whose keys have 192 channels, values 128, and those a factor."""
    ours = teacher(depth=1, kv_heads=4, **UNEVEN)
    found = transfer(ours, dict(kind=kind)).student
    old = ours.model.layer(ours.params, 0)["mixer"]
    new = found.model.layer(found.params, 0)["mixer"]
    value = new["value" if kind == "mamba2" else "v"]
    np.testing.assert_array_equal(value["kernel"], old["v"]["kernel"] * np.float32(0.7))
    if "bias" in value:
        np.testing.assert_array_equal(value["bias"], old["v"]["bias"] * np.float32(0.7))
    np.testing.assert_array_equal(new["out"]["kernel"], old["out"]["kernel"])


@pytest.mark.parametrize("kind", ["kda", "lightning", "nha"])
def test_values_of_a_size_that_the_mixer_cannot_have_start_fresh_and_say_so(kind):
    found = transfer(teacher(depth=1, **UNEVEN), dict(kind=kind))
    for name in ("v.kernel", "out.kernel"):
        assert found.fresh[f"layers.0.mixer.{name}"].startswith("the teacher's heads")
        assert f"layers.0.mixer.{name}" in found.dropped
    assert "layers.0.mixer.q.kernel" in found.copied


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["unit_offset", "whole", "l2"])
def test_every_array_has_the_shape_of_the_new_mixer(kind, form):
    ours = teacher(depth=1, **UNEVEN | dict(qk_norm=form, bias=True))
    student = transfer(ours, dict(kind=kind)).student
    own = student.model.by_name(student.model.abstract)
    for name, value in student.model.by_name(student.params).items():
        assert np.shape(value) == own[name].shape, name


@pytest.mark.parametrize(
    "mixer, told",
    [
        (dict(kind="gdn"), {"v_norm", "soft_cap", "scale", "rope"}),
        (dict(kind="lightning"), {"v_norm", "soft_cap"}),
        (dict(kind="nha"), {"v_norm", "soft_cap"}),
        (dict(kind="attention", window=4, soft_cap=None), set()),
    ],
    ids=lambda x: x["kind"] if isinstance(x, dict) else "",
)
def test_settings_of_attention_without_counterpart_are_told(mixer, told):
    """They have no parameters, so no name in `dropped` tells that they are lost (Gemma 4's v_norm)."""
    found = transfer(teacher(v_norm=True, soft_cap=20.0, scale=0.5), mixer, (1,))
    assert set(found.unlike) == {f"layers.1.mixer.{name}" for name in told}
    lines = "\n".join(found.describe())
    assert ("no counterpart: mixer.v_norm in layer 1 (on)" in lines) == ("v_norm" in told)


def test_layers_stack_as_the_teacher_s_can():
    mixers = dict(swa=dict(FULL, window=4), full=FULL)
    config = model_config("swa*2 full", depth=9, mixers=mixers)
    layout = student_config(config, dict(kind="gdn")).layout
    assert (len(layout.unit), layout.repeats) == (3, 3)
    assert layout.names == ("gdn",) * 9
    layout = student_config(config, dict(kind="nha"), (0, 3, 6)).layout
    assert layout.names == ("nha", "swa", "full") * 3 and layout.repeats == 3


@pytest.mark.parametrize("kind", [pytest.param("gdn", marks=pytest.mark.slow), "nha"])
def test_packed_is_separate_on_a_converted_checkpoint(kind):
    student = transfer(open_model(FIXTURES / "llama"), dict(kind=kind)).student
    rng = np.random.default_rng(3)
    first, second = (rng.integers(0, student.config.vocab_size, n) for n in (7, 12))
    packed = student.logits(np.concatenate([first, second])[None], [[1] * 7 + [2] * 12])
    np.testing.assert_allclose(packed[0, :7], student.logits(first[None])[0], atol=1e-4)
    np.testing.assert_allclose(packed[0, 7:], student.logits(second[None])[0], atol=1e-4)


@pytest.mark.slow
def test_the_student_is_saved_and_opened_as_a_model_folder(tmp_path):
    student = transfer(open_model(FIXTURES / "qwen2"), dict(kind="gla")).student
    save_model(student, tmp_path / "student")
    again = open_model(tmp_path / "student")
    np.testing.assert_array_equal(again.logits(tokens()), student.logits(tokens()))
    assert "architecture" not in again.settings


@pytest.mark.parametrize(
    "text, layers", [("all", None), ("0-3,7", (0, 1, 2, 3, 7)), ("2", (2,)), (" 1 , 4-4", (1, 4))]
)
def test_layers_are_read(text, layers):
    assert read_layers(text, 8) == layers


def test_layers_that_the_model_has_not_are_refused_before_they_are_listed():
    with pytest.raises(UserError, match="layers has 99999999999: the teacher's are 0 to 7"):
        read_layers("1,0-99999999999", 8)


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "9" * 5000])
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match="write 'all', or numbers"):
        read_layers(text, 8)


@pytest.mark.parametrize(
    "mixer, layers, sentence",
    [
        (dict(kind="mla"), None, "cannot replace attention"),
        ({}, None, "cannot replace attention"),
        (dict(kind="gdn"), (4,), "the teacher's are 0 to 3"),
        (dict(kind="gdn"), (), "names no layer"),
        (dict(kind="gdn", head=3), None, "unknown key"),
    ],
)
def test_what_does_not_fit_is_one_sentence(mixer, layers, sentence):
    with pytest.raises(UserError, match=sentence):
        transfer(teacher(), mixer, layers)


def test_a_layer_without_softmax_attention_is_refused():
    ours = transfer(teacher(), dict(kind="gla"), (1,)).student
    with pytest.raises(UserError, match="layers has 1, which has gla"):
        transfer(ours, dict(kind="gdn"), (1,))
    assert transfer(ours, dict(kind="gdn")).layers == (0, 2, 3)


def sharing():
    """A teacher whose third layer attends to the keys of the second."""
    mixers = dict(full=FULL, gives=dict(FULL, kv_out="keys"), reads=dict(FULL, kv_in="keys"))
    return opened(model_config("full gives reads", depth=3, mixers=mixers))


def test_a_layer_without_keys_of_its_own_begins_with_a_fresh_gate():
    found = transfer(sharing(), dict(kind="nha", window=4), (2,))
    assert {"layers.2.mixer.k.kernel", "layers.2.mixer.gate.kernel"} <= found.fresh.keys()
    assert "layers.2.mixer.q.kernel" in found.copied


def test_the_keys_that_another_layer_reads_cannot_go():
    with pytest.raises(
        UserError, match="new model's mixers.reads reads 'keys', and no layer below"
    ):
        transfer(sharing(), dict(kind="gdn"), (1,))
