"""The committed comparison of compiled steps: its README table, and that both sides are one model."""

import math

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
        if not (compile_peers.CASES | compile_peers.GROWTH)[case].sizes().delta:
            assert abs(ours["TFLOP"] / theirs["TFLOP"] - 1) < 1e-3, name


def test_a_case_means_the_same_words_on_both_sides(compile_peers):
    for name, case in (compile_peers.CASES | compile_peers.GROWTH).items():
        sizes, words = case.sizes(), compile_peers.maxtext_settings(case)
        assert words["per_device_batch_size"] * case.chips == sizes.rows, name
        assert words["ici_fsdp_parallelism"] * case.context == case.chips, name
        assert words.get("ici_context_parallelism", 1) == case.context, name
        assert (words["decoder_block"] == "qwen3_next") == sizes.delta, name
        # v5p's name counts cores, two a chip.
        count = int(case.maxtext_slice.split("-")[1])
        assert count == case.chips * (2 if "v5p" in case.slice_name else 1), name
        assert math.prod(map(int, case.slice_name.split(":")[1].split("x"))) == case.chips, name


def test_growth_keeps_the_tokens_of_a_chip_and_splits_time_alike(compile_peers):
    for name, case in compile_peers.GROWTH.items():
        asked = compile_peers.request(name, "hybridlm", "best")["overrides"]
        theirs = compile_peers.request(name, "maxtext", "best")["settings"]
        rows, length = int(asked["data.batch_size"]), int(asked["data.seq_len"])
        assert rows * length == case.chips * compile_peers.TOKENS_OF_A_CHIP, name
        assert rows % theirs["ici_fsdp_parallelism"] == 0, name
        assert length == theirs["max_target_length"], name
        assert int(asked["mesh.context"]) == theirs.get("ici_context_parallelism", 1), name
        # MaxText refuses its balanced order of time in Gated DeltaNet.
        balanced = theirs.get("context_parallel_load_balance", False)
        assert balanced == (case.context > 1 and case.shape == "dense"), name


def test_the_committed_results_are_of_the_steps_that_would_be_compiled_now(compile_peers):
    for name, found in compile_peers.kept().items():
        if "failed" not in found:
            assert found["request"] == compile_peers.request(*name.split(", ")), name


def test_the_table_of_growth_names_what_does_not_compile(compile_peers, monkeypatch):
    figures = dict(TFLOP=1.0, hbm_GB=2.0, sent_GB=3.0, temporaries_GiB=4.0, cpu_s=5.0)
    results = {
        "dense on 512, maxtext, best": {"failed": "no room"},
        "dense on 512, hybridlm, best": figures,
    }
    monkeypatch.setattr(compile_peers, "kept", lambda: results)
    *_, ours, theirs = compile_peers.growth()
    about = "| dense | 20 | 512 | 4,096 | 1 |"
    assert ours == f"{about} hybridlm | best | 1.0 | 2.0 | 3.00 | 4.00 | 5 |"
    assert theirs == f"{about} maxtext | best | does not compile: no room |  |  |  |  |"
