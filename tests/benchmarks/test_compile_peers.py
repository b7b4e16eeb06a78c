"""The committed comparison of compiled steps: its README table, and that both sides are one model."""

import pytest


@pytest.fixture(scope="module")
def compile_peers(script):
    return script("compile_peers")


def test_the_readme_has_the_committed_results(compile_peers):
    text = compile_peers.README.read_text()
    table = text.split(compile_peers.BEGIN)[1].split(compile_peers.END)[0]
    assert table.strip().splitlines() == list(compile_peers.rows())


def test_a_missed_bar_is_named(compile_peers, monkeypatch):
    seconds = dict(compute=2.0, hbm=1.0, interconnect=0.5)
    theirs = dict(hbm_GB=10, sent_GB=10, temporaries_GiB=10, cpu_s=10, seconds_at_least=seconds)
    ours = theirs | dict(hbm_GB=5, cpu_s=6.9, seconds_at_least=seconds | dict(hbm=3.0))
    results = {"delta v5p, hybridlm, best": ours, "delta v5p, maxtext, best": theirs}
    monkeypatch.setattr(compile_peers, "kept", lambda: results)
    *_, row = compile_peers.ratios()
    assert row == "| delta v5p | 0.500 (bar 0.4) | 1.000 | 1.000 | 0.690 | no (bar) |"


def test_both_sides_have_one_models_parameters_and_products(compile_peers):
    results = compile_peers.kept()
    for name, ours in results.items():
        case, side, flags = name.split(", ")
        theirs = results.get(f"{case}, maxtext, {flags}")
        if side != "hybridlm" or theirs is None or "failed" in theirs | ours:
            continue
        # MaxText's state has a few counters of random keys beside the parameters.
        assert abs(ours["parameters"] / theirs["parameters"] - 1) < 1e-2, name
        assert ours["unknown_loops"] == theirs["unknown_loops"] == 0, name
        if not compile_peers.SHAPES[compile_peers.CASES[case][0]].delta:
            assert abs(ours["TFLOP"] / theirs["TFLOP"] - 1) < 1e-3, name


def test_a_shape_means_the_same_words_on_both_sides(compile_peers):
    for case, (shape, _, slice_name, chips) in compile_peers.CASES.items():
        sizes = compile_peers.SHAPES[shape]
        words = compile_peers.maxtext_settings(shape, slice_name, chips)
        assert words["per_device_batch_size"] * chips == sizes.rows, case
        assert words["ici_fsdp_parallelism"] == chips, case
        assert (words["decoder_block"] == "qwen3_next") == sizes.delta, case
