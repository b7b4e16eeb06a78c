"""The dry run: tables last, the config on request, and what the depth leaves of the pattern."""

import json

import pytest

DEMO = ["train", "--config", "configs/demo.py:smoke", "--dry_run"]


def test_the_config_is_printed_on_request_before_the_tables(command, in_root):
    code, out, _ = command(*DEMO)
    assert code == 0 and "{" not in out
    shown = command(*DEMO, "--show_config")[1]
    assert shown.endswith(out)
    assert json.loads(shown.removesuffix(out))["train"]["steps"] == 8


def test_the_config_alone_is_no_command(refusal, in_root):
    said = refusal(*DEMO[:-1], "--show_config")
    assert "--show_config goes with --dry_run" in said


@pytest.mark.parametrize(
    ("depth", "said"),
    [
        (2, "0 x (swa full rec), then only 2 of these 3 layers (swa full)"),
        (6, None),
        (7, "2 x (swa full rec), then only 1 of these 3 layers (swa)"),
    ],
)
def test_a_depth_that_does_not_divide_by_the_pattern_is_said(depth, said, command, in_root):
    out = command(*DEMO, f"--config.model.depth={depth}")[1]
    assert ("then only" in out) == (said is not None)
    if said:
        assert said in out
