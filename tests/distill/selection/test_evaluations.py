"""The table of evaluations: each is made once, also after a process was killed."""

import math
import os
import signal
import subprocess
import sys

import pytest

from hybridlm.distill.selection.evaluations import Evaluations
from hybridlm.errors import RunError

IDENTITY = {"teacher": "a", "sets": 2}


def counted(values):
    """(measure, calls): answers from a dict, and lists what it was asked."""
    calls = []

    def measure(kept, metric):
        calls.append((kept, metric))
        return values[kept, metric]

    return measure, calls


def test_each_pair_of_layers_and_metric_is_measured_once():
    one, other = frozenset({1}), frozenset({1, 2})
    measure, calls = counted({(one, "a"): (1.0,), (one, "b"): (2.0,), (other, "a"): (3.0,)})
    table = Evaluations(measure)
    answers = [table(one, "a"), table(one, "b"), table(other, "a"), table(frozenset([1]), "a")]
    assert answers == [(1.0,), (2.0,), (3.0,), (1.0,)]
    assert len(calls) == 3 and table.measured == 3 and table.reused == 1


def test_a_table_opened_again_measures_nothing_twice(tmp_path):
    path, nan = tmp_path / "t.jsonl", math.nan
    values = {(frozenset({0, 3}), "a"): (0.1, nan), (frozenset(), "a"): (math.inf, -2e-300)}
    measure, _ = counted(values)
    table = Evaluations(measure, path, IDENTITY)
    before = {key: table(*key) for key in values}
    table.close()
    measure, calls = counted({})
    again = Evaluations(measure, path, IDENTITY)
    after = {key: again(*key) for key in values}
    assert repr(after) == repr(before) and not calls and again.measured == 0


@pytest.mark.parametrize("lost", (1, 7, 40))
def test_a_line_without_its_end_is_measured_again(tmp_path, lost):
    path = tmp_path / "t.jsonl"
    values = {(frozenset({i}), "a"): (float(i),) for i in range(3)}
    measure, _ = counted(values)
    table = Evaluations(measure, path, IDENTITY)
    for key in values:
        table(*key)
    table.close()
    path.write_bytes(path.read_bytes()[:-lost])
    measure, calls = counted(values)
    again = Evaluations(measure, path, IDENTITY)
    assert [again(*key) for key in values] == list(values.values())
    assert calls == [(frozenset({2}), "a")]
    again.close()
    assert len(Evaluations(measure, path, IDENTITY)) == 3


def test_two_processes_do_not_write_one_table(tmp_path):
    first = Evaluations(counted({})[0], tmp_path / "t.jsonl", IDENTITY)
    with pytest.raises(RunError, match="another process evaluates into"):
        Evaluations(counted({})[0], tmp_path / "t.jsonl", IDENTITY)
    first.close()
    Evaluations(counted({})[0], tmp_path / "t.jsonl", IDENTITY).close()


KILLED = """
import sys, pathlib
from hybridlm.distill.selection.evaluations import Evaluations

def measure(kept, metric):
    print("asked", *sorted(kept), flush=True)
    if kept == {3}:
        sys.stdin.readline()  # until it is killed
    return (sum(kept) / 7,)

table = Evaluations(measure, pathlib.Path(sys.argv[1]), {"a": 1})
for layer in range(6):
    print("value", table(frozenset({layer}), "m")[0], flush=True)
"""


def test_a_search_killed_with_sigkill_repeats_no_evaluation(tmp_path, root):
    words = [sys.executable, "-c", KILLED, str(tmp_path / "t.jsonl")]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    with subprocess.Popen(words, **pipes) as process:
        while process.stdout.readline() != "asked 3\n":
            pass
        os.kill(process.pid, signal.SIGKILL)
    done = subprocess.run(words, input="\n", stdout=subprocess.PIPE, text=True, cwd=root)
    asked = [line for line in done.stdout.splitlines() if line.startswith("asked")]
    values = [float(line[6:]) for line in done.stdout.splitlines() if line.startswith("value")]
    assert asked == ["asked 3", "asked 4", "asked 5"]
    assert values == [layer / 7 for layer in range(6)]


def test_a_table_of_other_models_is_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    Evaluations(counted({})[0], path, IDENTITY).close()
    with pytest.raises(RunError, match="of other evaluations .teacher differ"):
        Evaluations(counted({})[0], path, IDENTITY | {"teacher": "b"})


def test_what_other_metrics_depend_on_is_added(tmp_path):
    path, measure = tmp_path / "t.jsonl", counted({(frozenset(), "a"): (1.0,)})[0]
    first = Evaluations(measure, path, IDENTITY)
    first(frozenset(), "a")
    first.close()
    Evaluations(measure, path, IDENTITY | {"text": "x"}).close()
    assert len(Evaluations(measure, path, IDENTITY)) == 1
    with pytest.raises(RunError, match="of other evaluations .text differ"):
        Evaluations(measure, path, IDENTITY | {"text": "y"})


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"kept": [1], "metric": "a", "values": [1.0]}\n')
    with pytest.raises(RunError, match="does not say of which models it is"):
        Evaluations(counted({})[0], path, IDENTITY)


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "t.jsonl"
    Evaluations(counted({})[0], path, IDENTITY).close()
    path.write_text(path.read_text() + '{"kept": [1]}\n')
    sentence = r"""damaged in line 2 \('metric'\): remove that line, '\{"kept": \[1\]\}'$"""
    with pytest.raises(RunError, match=sentence):
        Evaluations(counted({})[0], path, IDENTITY)
