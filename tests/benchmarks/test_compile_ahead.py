"""The committed figures of compiled recipes: the page's table is theirs."""

import pytest


@pytest.fixture(scope="module")
def compile_ahead(script):
    return script("compile_ahead")


def test_the_page_has_the_committed_results(compile_ahead):
    text = compile_ahead.PAGE.read_text()
    table = text.split(compile_ahead.BEGIN)[1].split(compile_ahead.END)[0]
    assert table.strip().splitlines() == list(compile_ahead.rows())


def test_a_row_of_a_step_that_the_compiler_refused(compile_ahead):
    memory = {"state": 2**30, "temporaries": None, "total": None, "available": None}
    report = {"topology": "v5e:4x4", "step": {"fits": False, "memory": memory}}
    header = next(compile_ahead.rows())
    found = compile_ahead.cells("hybrid_1b", report)
    assert found[:4] == ["`hybrid_1b`", "`v5e:4x4`", "unknown of unknown", "no"]
    assert len(found) == header.count("|") - 1


def test_kernels_of_an_op_count_together(compile_ahead):
    executions = {"delta_rule_forward_head": 12, "delta_rule_backward_head": 6, "attention_dq": 3}
    assert compile_ahead.kernels(executions) == "attention dq 3, delta rule 18"
