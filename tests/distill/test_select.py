"""`python -m hybridlm.distill.select`: a plain table in, the attention layers out."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from hybridlm.distill import select


@pytest.fixture
def table(tmp_path):
    """Writes a CSV file of the given text, or of two columns."""

    def write(text=None, recall=(), commonsense=()):
        if text is None:
            rows = (f"{i},{r!r},{c!r}" for i, (r, c) in enumerate(zip(recall, commonsense)))
            text = "\n".join(["layer,recall,commonsense", *rows]) + "\n"
        path = tmp_path / "scores.csv"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def run(capsys, tmp_path):
    """Runs the module; returns (exit code, stdout, stderr, the JSON)."""

    def run(*words):
        out = tmp_path / "out.json"
        code = select.main([*map(str, words), "--json", str(out)])
        said = capsys.readouterr()
        return code, said.out, said.err, json.loads(out.read_text()) if code == 0 else None

    return run


@pytest.fixture
def refusal(run):
    """Runs the module, which must refuse with one sentence; returns it."""

    def refused(*words):
        code, out, err, _ = run(*words)
        assert code == 2 and out == "" and err.count("\n") == 1, (code, out, err)
        return err

    return refused


@pytest.mark.parametrize("seed", range(4))
def test_halo_keeps_what_the_formula_says(table, run, seed):
    rng = np.random.default_rng(seed)
    depth, keep = int(rng.integers(8, 40)), int(rng.integers(1, 8))
    recall, commonsense = rng.uniform(0.2, 0.9, (2, depth))
    path = table(recall=recall.tolist(), commonsense=commonsense.tolist())
    code, out, _, found = run(path, "--method", "halo", "--keep", keep)
    scores = np.minimum(50, (recall.max() - recall) / (commonsense.max() - commonsense + 1e-10))
    order = np.argsort(scores)[::-1].tolist()
    kept = sorted(order[:keep])
    assert code == 0 and found["kept"] == kept and found["order"] == order
    assert [found["scores"][str(i)] for i in range(depth)] == scores.tolist()
    listed = f"({keep} of {depth}): {', '.join(map(str, kept))}"
    assert out.splitlines()[0] == f"attention layers kept {listed}"


def test_rows_may_stand_in_any_order_with_other_columns_between(table, run):
    text = "note, commonsense ,layer,recall\nx,0.5,2,0.9\n,0.7,0,0.2\n\n,0.6,1,0.4\n"
    _, _, _, found = run(table(text), "--keep", 1)
    assert found["kept"] == [0] and found["scores"]["0"] == 50


def test_a_quarter_of_the_layers_is_kept_by_default(table, run):
    values = np.linspace(0, 1, 11).tolist()
    assert run(table(recall=values, commonsense=values))[3]["keep"] == 2


@pytest.mark.parametrize(
    "method, kept", (("recall", [1, 3]), ("uniform", [0, 2]), ("kl_once", [2, 3]))
)
def test_other_methods_read_the_columns_that_they_need(table, run, method, kept):
    text = "layer,recall,kl\n0,0.9,4\n1,0.1,5\n2,0.8,1\n3,0.3,2\n"
    assert run(table(text), "--method", method, "--keep", 2)[3]["kept"] == kept


def test_a_tie_at_the_cut_is_told(table, run):
    path = table(recall=[0.1, 0.5, 0.1], commonsense=[0.9, 0.9, 0.9])
    _, out, _, found = run(path, "--keep", 1)
    assert found["kept"] == [2]
    assert "note: layers 0, 2 tie at the cut with a score of 50" in out


@pytest.mark.parametrize("keep, kept", ((0, []), (1, [3]), (2, [1, 3]), (4, [0, 1, 2, 3])))
def test_what_a_spreadsheet_writes_is_read(table, run, keep, kept):
    """A byte order mark, CRLF, quotes, signs. Scores by hand: 0; 0.7 / 0.1; 0.4 / 0.15; the cap."""
    path = table()
    rows = '"layer","recall","commonsense"', "3,-.15,-0.3", '1,"-0.8",-4e-1', "0,-0.1,-0.5"
    text = "\r\n".join([*rows, "2,-0.5,-.45", ""])
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    _, out, _, found = run(path, "--keep", keep)
    assert found["kept"] == kept and found["order"] == [3, 1, 2, 0]
    assert [found["scores"][i] for i in "0123"] == pytest.approx([0, 7, 0.4 / 0.15, 50])
    assert out.startswith(
        f"attention layers kept ({keep} of 4): {', '.join(map(str, kept)) or 'none'}"
    )


HEADER = "layer,recall,commonsense\n"


@pytest.mark.parametrize(
    "text, message",
    (
        ("", "is empty: it needs a header with layer, recall and commonsense"),
        (HEADER, "has a header and no row"),
        ("layer,recall\n0,1\n", "has no column 'commonsense': its columns are layer, recall"),
        ("recall,commonsense\n1,1\n", "has no column 'layer'"),
        ("layer,recall,recall,commonsense\n0,1,1,1\n", "has the column 'recall' 2 times"),
        (HEADER + "0,1,1\n2,1,1\n", "has no row for layer 1: it needs one for every layer from 0"),
        (HEADER + "1,1,1\n2,1,1\n", "has no row for layer 0"),
        (HEADER + "0,1,1\n1,1,1\n0,2,2\n", "has layer 0 twice, in lines 2 and 4"),
        (HEADER + "0,1,1\n1,,1\n", "line 3 (layer 1) has no recall"),
        (HEADER + "0,1,1\n1,nan,1\n", "line 3 (layer 1): recall is nan, and must be finite"),
        (HEADER + "0,1,1\n1,1,-inf\n", "commonsense is -inf, and must be finite"),
        (HEADER + "0,1,1\n1,x,1\n", "recall must be a number, not 'x'"),
        (HEADER + "0,1,1\n1,1_0,1\n", "recall must be a number, not '1_0'"),
        (HEADER + "0,1,1\n1,\u0661,1\n", "recall must be a number, not '\u0661'"),
        (HEADER + "0,1,1\n1,1\n", "line 3 has 2 values, and the header 3"),
        (HEADER + "0,1,1\n-1,1,1\n", "a layer must be a whole number from 0, not '-1'"),
        (HEADER + "0,1,1\n1.0,1,1\n", "a layer must be a whole number from 0, not '1.0'"),
        (HEADER + '0,1,1\n1,"1,1\n', "line 3 has 2 values"),
    ),
)
def test_a_bad_table_is_refused_in_one_sentence(table, refusal, text, message):
    path = table(text)
    assert message in refusal(path) and str(path) in refusal(path)


def test_bad_options_are_refused_in_one_sentence(table, refusal, tmp_path):
    path = table(recall=[1, 2], commonsense=[1, 2])
    assert "--keep is 3, and" in refusal(path, "--keep", 3)
    assert "--keep must be at least 0" in refusal(path, "--keep", -1)
    assert "--keep must be a whole number" in refusal(path, "--keep", "few")
    assert "--method is 'hola': valid are halo" in refusal(path, "--method", "hola")
    assert "greedy evaluates models with several layers" in refusal(path, "--method", "greedy")
    assert "has no column 'kl'" in refusal(path, "--method", "kl_once")
    assert "cannot be read: No such file" in refusal(tmp_path / "none.csv")


def test_it_starts_without_jax(table, root):
    path = table(recall=[1, 2], commonsense=[2, 1])
    script = (
        "import sys; from hybridlm.distill import select; code = select.main([sys.argv[1]]);"
        " sys.exit(code or 10 * ('jax' in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script, path], cwd=root, check=True, capture_output=True)


def test_the_command_of_the_page_prints_what_it_shows(root, run, monkeypatch):
    page = (root / "docs" / "selection.md").read_text()
    line, shown = re.search(r"-m hybridlm.distill.select (.*)\n# (.*)\n", page).groups()
    monkeypatch.chdir(root)
    words = line.partition(" --json")[0].split()
    assert run(*words)[1].splitlines()[0] == shown
