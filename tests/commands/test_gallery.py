"""`hybridlm gallery` prints sheets, and refuses what it cannot show."""

import pytest


@pytest.fixture
def two_models(tmp_path, root):
    """A folder with the recipes of two models."""
    for name in ("llama_3_8b", "gpt_oss_20b", "published"):
        file = root / "configs" / "gallery" / f"{name}.py"
        (tmp_path / "gallery").mkdir(exist_ok=True)
        (tmp_path / "gallery" / file.name).write_text(file.read_text())
    (tmp_path / "common.py").write_text((root / "configs" / "common.py").read_text())
    return tmp_path / "gallery"


def test_list_has_a_line_a_model(command, two_models):
    code, out, _ = command("gallery", "list", "--configs", two_models)
    header, *lines = out.splitlines()
    assert code == 0 and header.startswith("name ")
    assert [line.split()[:4] for line in lines] == [
        ["gpt_oss_20b", "20.91B", "4.19B", "48"],
        ["llama_3_8b", "8.03B", "8.03B", "128"],
    ]


def test_show_prints_the_sheet(command, in_root):
    code, out, _ = command("gallery", "show", "llama_3_8b")
    assert code == 0
    for part in ("Llama 3 8B, Meta, 2024-04", "arXiv 2407.21783", "128 KiB", "32 GQA", "8.03B"):
        assert part in out


def test_show_without_a_name_is_refused(refusal):
    assert "gallery show needs a model's name" in refusal("gallery", "show")


def test_list_with_a_name_is_refused(refusal):
    assert "gallery list takes no name" in refusal("gallery", "list", "llama_3_8b")


def test_show_writes_the_diagram(command, in_root, tmp_path):
    file = tmp_path / "llama.svg"
    code, out, _ = command("gallery", "show", "llama_3_8b", "--diagram", file)
    assert code == 0 and "Llama 3 8B" in out
    assert "<title>Llama 3 8B</title>" in file.read_text(encoding="utf-8")


def test_a_diagram_of_another_format_is_refused(refusal):
    said = refusal("gallery", "show", "llama_3_8b", "--diagram", "llama.pdf")
    assert "must end in .svg" in said


def test_a_diagram_is_of_one_model(refusal):
    assert "--diagram is of gallery show" in refusal("gallery", "list", "--diagram", "all.svg")


def test_page_writes_one_file_of_all_models(command, two_models, tmp_path):
    file = tmp_path / "models.html"
    code, out, _ = command("gallery", "page", "--configs", two_models, "--out", file)
    assert code == 0 and out.strip() == str(file)
    written = file.read_text(encoding="utf-8")
    assert written.startswith("<!doctype html>")
    assert all(title in written for title in ("gpt-oss-20b", "Llama 3 8B"))


def test_the_file_of_a_page_is_no_option_of_show(refusal):
    said = refusal("gallery", "show", "llama_3_8b", "--out", "llama.html")
    assert "--out is of gallery page, not of gallery show" in said
