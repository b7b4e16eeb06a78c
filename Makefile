# Everything starts from a bare clone, a Python of at least 3.12, and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export JAX_PLATFORMS ?= cpu

# Compilers of chips that are not there, kept out of the environment that runs things: with them
# jax looks for the chips.
AOT := .venv-aot
AOT_READY := $(AOT)/.ready

.PHONY: help setup demo laziness laziness-pilot laziness-all laziness-results test test-slow lint \
  mixers benchmark aot aot-environment scorecard clean

help:
	@echo "make demo       set up, and train the demo: 5 minutes on 2 CPU cores"
	@echo "make laziness   see retrieval heads form in 30 small runs; it goes on where it stopped"
	@echo "make test       set up, and run the tests (slow ones: a sample that rotates by the day)"
	@echo "make test-slow  all tests"
	@echo "make lint       ruff: rules and format"
	@echo "make mixers     run every law on every mixer, and write docs/mixers.md: half an hour"
	@echo "make aot        compile every kernel for every chip, hold them to the committed scorecard,"
	@echo "                and the training step of configs/scale/hybrid_1b.py for its slice"
	@echo "make scorecard  the same, and write benchmarks/scorecard.{json,md}"
	@echo "make benchmark  speed on this CPU against PyTorch and jax-linear-attention"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
	  { echo "hybridlm needs Python 3.12 or newer and '$(PYTHON)' is older: install Python 3.12, or name one with 'make PYTHON=python3.12 ...'"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: setup
	$(BIN)/hybridlm train --config configs/demo.py --workdir runs/demo

RUNS := runs/laziness

laziness: setup
	$(BIN)/python -m experiments.large_window_laziness.run --workdir $(RUNS) --sets core --jobs 2
	$(MAKE) laziness-results

# Smaller models, 96 tokens: windows and cures.
laziness-pilot: setup
	$(BIN)/python -m experiments.large_window_laziness.run --workdir $(RUNS) --scale pilot --sets core,cures --jobs 2
	$(BIN)/python -m experiments.large_window_laziness.results --workdir $(RUNS) --scale pilot

# Recurrent mixers and long budgets too, at 96 tokens, beside the windows at 256.
laziness-all: setup
	$(BIN)/python -m experiments.large_window_laziness.run --workdir $(RUNS) --scale pilot --sets core,cures,recurrent,long --jobs 2
	$(BIN)/python -m experiments.large_window_laziness.results --workdir $(RUNS) --scale pilot
	$(MAKE) laziness

# Tables, claims and figures of the runs that are done.
laziness-results: setup
	$(BIN)/python -m experiments.large_window_laziness.results --workdir $(RUNS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup --slow all $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mixers: setup
	$(BIN)/python tests/models/record_laws.py
	$(BIN)/python -m hybridlm.models.mixers.document > docs/mixers.md

benchmark: setup
	$(BIN)/python benchmarks/train_cpu.py
	$(BIN)/python benchmarks/mixers_cpu.py

aot-environment: $(AOT_READY)

$(AOT_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(AOT)
	$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[aot]'
	$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  $$($(AOT)/bin/python -c 'import jax; print(*(f"jax-cuda13-{p}=={jax.__version__}" for p in ("plugin", "pjrt")))')
	@touch $(AOT_READY)

aot: $(AOT_READY)
	$(AOT)/bin/python -m pytest -n 2 --slow all tests/kernels_pallas/test_compiled_kernels.py tests/aot \
	  $(PYTEST_ARGS)

scorecard: $(AOT_READY)
	$(AOT)/bin/python -m kernels_pallas.aot --jobs 2 $(AOT_ARGS)

clean:
	rm -rf $(VENV) $(AOT) build *.egg-info .pytest_cache .hypothesis .ruff_cache
