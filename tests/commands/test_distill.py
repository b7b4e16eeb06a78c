"""`hybridlm distill transfer` writes a student, says what it took over, and refuses in one sentence."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hybridlm.distill.compose import composed
from hybridlm.distill.kinds import KINDS
from hybridlm.runs import open_model, save_model
from tests.train.distilling import save_pair

LLAMA = pathlib.Path(__file__).parents[1] / "convert" / "fixtures" / "llama"


def test_a_student_is_written_and_its_parameters_are_accounted_for(command, impatient, tmp_path):
    out = tmp_path / "student"
    words = ["--mixer", "nha", "--settings", '{"window": 8, "slots": 4}', "--layers", "1"]
    code, said, err = command("distill", "transfer", LLAMA, *words, "--out", out)
    assert code == 0 and "copied: mixer.q.kernel in layer 1" in said and str(out) in said
    assert "giving the layers their new mixer ..." in err and f"writing the model to {out}" in err
    names = open_model(out).config.layout.names
    assert names[1] == "nha" and names[0] != "nha"


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--mixer", "mla"], "cannot replace attention"),
        (["--mixer", "gdn", "--settings", "[1]"], "(no JSON object): write a JSON object"),
        (
            ["--mixer", "gdn", "--settings", '{"window": 1, "window": 64}'],
            "(an object has the key 'window' twice): write a JSON object",
        ),
        (["--mixer", "gdn", "--calibration_length", "x"], "must be a whole number (4k is 4096)"),
        (["--mixer", "gdn", "--layers", "99"], "the teacher's are 0 to"),
        (["--mixer", "gdn", "--settings", '{"widow": 3}'], "unknown key"),
    ],
)
def test_a_mistake_is_one_sentence(words, sentence, refusal, tmp_path):
    assert sentence in refusal("distill", "transfer", LLAMA, *words, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised (gptq)"),
        ({"architectures": ["GPT2LMHeadModel"]}, "hybridlm has no GPT2LMHeadModel"),
        ({"attention_bias": "some"}, "attention_bias"),
    ],
    ids=["quantised weights", "unsupported architecture", "unsupported option"],
)
def test_a_teacher_that_cannot_be_read_is_one_sentence(keys, sentence, refusal, tmp_path):
    teacher = pathlib.Path(shutil.copytree(LLAMA, tmp_path / "teacher"))
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | keys))
    said = refusal("distill", "transfer", teacher, "--mixer", "gdn", "--out", tmp_path / "out")
    assert sentence in said and not (tmp_path / "out").exists()


def test_weights_of_another_dtype_are_one_sentence(refusal, tmp_path):
    teacher = pathlib.Path(shutil.copytree(LLAMA, tmp_path / "teacher"))
    tensors = load_file(teacher / "model.safetensors")
    name = next(n for n in tensors if n.endswith("q_proj.weight"))
    tensors[name] = tensors[name].astype(np.int8)
    save_file(tensors, teacher / "model.safetensors")
    said = refusal("distill", "transfer", teacher, "--mixer", "gdn", "--out", tmp_path / "out")
    assert name in said and "I8" in said


def test_a_folder_that_is_not_empty_is_refused_before_the_teacher_is_read(refusal, tmp_path):
    (tmp_path / "file").touch()
    nowhere = tmp_path / "nowhere"
    words = ["distill", "transfer", nowhere, "--mixer", "gdn", "--out", tmp_path]
    assert "is not empty" in refusal(*words)
    assert "is not empty" in refusal("distill", "hype", nowhere, "--out", tmp_path)


def test_a_text_that_is_not_utf_8_is_one_sentence(refusal, tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"abc\xff")
    words = ["--mixer", "gdn", "--calibrate", text, "--out", tmp_path / "out"]
    assert "invalid UTF-8 at byte 3" in refusal("distill", "transfer", LLAMA, *words)


@pytest.mark.slow
def test_a_hybrid_is_evaluated_probed_continued_and_exported(command, tmp_path):
    """The folder of a composed hybrid is taken by every command that takes a model."""
    save_pair(tmp_path, dict(kind="attention", window=8))
    models = [open_model(tmp_path / name) for name in ("teacher", "student")]
    folder = tmp_path / "hybrid"
    save_model(composed(*models, {1}), folder)
    sizes = ["--length", 32, "--samples", 2]
    for words in (
        ["eval", "--workdir", folder, "--tasks", "mqar", "--lengths", 32, "--samples", 2],
        ["probe", "--workdir", folder, "--probes", "induction_heads", *sizes],
        ["convert", "export", "--from", folder],
    ):
        code, said, err = command(*words, "--out", tmp_path / words[0])
        assert code == 0 and said, err
    (score,) = json.loads((tmp_path / "eval" / "eval.json").read_text())["records"]
    assert 0 <= score["accuracy"] <= 1
    heads = (tmp_path / "probe" / "probes.jsonl").read_text().splitlines()
    assert len(heads) >= 8  # of two layers
    code, said, err = command(
        "generate", "--workdir", folder, "--prompt", "The state", "--tokens", 3
    )
    assert code == 0 and said.startswith("The state") and len(said) > len("The state\n"), err
    again = open_model(tmp_path / "convert")
    assert [m.window for _, m in again.config.layer_mixers()] == [8, None]


def test_half_a_command_says_the_whole(refusal):
    whole = "write distill transfer or distill select or distill hype"
    assert whole in refusal("distill") and whole in refusal("distill", "nothing")


def test_the_page_names_every_kind(root):
    page = (root / "docs" / "distill.md").read_text()
    assert not [kind for kind in KINDS if f"`{kind}`" not in page]
