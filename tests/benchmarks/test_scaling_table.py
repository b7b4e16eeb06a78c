"""The committed figures of sharded steps: the README's table is theirs."""

import json
import pathlib

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scaling(script):
    return script("scaling")


def test_the_readme_has_the_committed_results(scaling):
    results = json.loads((BENCHMARKS / "scaling.json").read_text())
    text = (BENCHMARKS / "README.md").read_text()
    assert text.split(scaling.BEGIN)[1].split(scaling.END)[0].strip() == scaling.render(results)


def test_every_kind_of_result_has_its_own_date(scaling):
    results = json.loads((BENCHMARKS / "scaling.json").read_text())
    assert all("date" in r or r["kind"] in results["dates"] for r in results["records"])
    results["dates"] |= dict(depth="2020-01-02", overhead="2020-01-02")
    last = scaling.render(results).splitlines()[-1]
    assert "compile times, overhead: 2020-01-02" in last
