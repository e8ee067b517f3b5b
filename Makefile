# make quickstart [SEED=n]   the whole loop in the sandbox (minutes, 2 cores); again: goes on where it stopped
# make real [SEED=n]         a real language model, SmolLM2-135M, through the whole loop (25 minutes, 2 idle cores; docs/smollm.md)
# make test                  the tests that every change must pass: all kinds, real parts (eight minutes, 2 cores)
# make test-all              these and the slow ones: every test but the long chaos runs (within the hour; docs/testing.md)
# make chaos                 kills at random, real Redis
# make check                 format, lint, types, import rules, unit tests (under three minutes)
# make benchmarks           what scoring and closed-form heads cost (a quarter of an hour on an idle machine)
# make sandbox-check         is the sandbox a fit instrument? (half an hour; units that have their row are skipped)
# make study NAME=...        one study: what is missing is run, two units at once, then tables and plots are written to docs/
# make studies               all of the sandbox; NAME=smollm, of the real model, takes hours (docs/smollm.md)
# make setup / setup-gpu     the virtual environment alone, CPU or GPU set
# make lock                  write the locks again (needs uv)
# make clean                 remove .venv, runs/ and data/: results too
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
TORCH_CPU := https://download.pytorch.org/whl/cpu
RUN := $(if $(filter 0,$(SEED)),quickstart,quickstart-seed$(SEED))
REAL := $(if $(filter 0,$(SEED)),smollm,smollm-seed$(SEED))
# One thread per process: two OpenMP pools on two cores are many times slower (docs/quickstart.md).
export OMP_NUM_THREADS := 1
export DS_BUILD_OPS := 0
# Files of tests side by side, those that take longest first (tests/conftest.py).
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Which tests of a directory: `make integration TIER=` runs the slow ones too.
TIER ?= -m "not slow"

.PHONY: setup setup-gpu quickstart real sandbox-check study studies benchmarks test test-all check lint unit integration e2e chaos lock clean

setup: .venv/cpu.done

.venv/cpu.done: requirements/cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, got %d.%d; set PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	@# The CPU build of torch is not on PyPI: from pip's own configuration where that has it, else from PyTorch's index.
	$(BIN)/pip install -q --no-deps $$(grep '^torch==' requirements/cpu.lock) || \
	  $(BIN)/pip install -q --no-deps --index-url $(TORCH_CPU) $$(grep '^torch==' requirements/cpu.lock)
	$(BIN)/pip install -q --no-deps -r requirements/cpu.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

setup-gpu: .venv/gpu.done

.venv/gpu.done: requirements/gpu.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-deps -r requirements/gpu.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

quickstart: setup
	$(BIN)/python -m examples.sandbox --out data/sandbox-$(SEED) --seed $(SEED)
	$(BIN)/python launch.py --config configs/quickstart.yaml run.seed=$(SEED) run.name=$(RUN) \
	  $$(test -f runs/$(RUN)/config.yaml && echo --resume)

# With people's pairs where examples.smollm found some.
real: setup
	$(BIN)/python -m examples.smollm --out data/smollm-$(SEED) --seed $(SEED)
	$(BIN)/python launch.py run.seed=$(SEED) run.name=$(REAL) \
	  --config configs/$$(test -f data/smollm-$(SEED)/preferences.jsonl && echo smollm_pairs || echo smollm).yaml \
	  $$(test -f runs/$(REAL)/config.yaml && echo --resume)
	$(BIN)/python -m examples.smollm.table runs/$(REAL)

sandbox-check: setup
	$(BIN)/python -m studies check

study: setup
	@test -n "$(NAME)" || { echo "make study NAME=...; studies are in studies/catalog.py"; exit 2; }
	$(BIN)/python -m studies run $(NAME)

studies: setup
	$(BIN)/python -m studies run

benchmarks: setup
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.ridge

test: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" tests

# What starts whole runs has the machine to itself here.
test-all: test
	$(BIN)/python -m pytest $(PARALLEL) -m slow tests/integration tests/unit
	$(BIN)/python -m pytest -m slow tests/e2e

check: setup lint unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

unit integration e2e: setup
	$(BIN)/python -m pytest $(PARALLEL) $(TIER) tests/$@

chaos: setup
	$(BIN)/python -m pytest tests/$@

lock:
	uv pip compile pyproject.toml --extra cpu --extra dev --universal --python-version 3.11 --no-header --no-annotate \
	  --override requirements/overrides-cpu.txt --extra-index-url $(TORCH_CPU) --index-strategy unsafe-best-match -o requirements/cpu.lock
	uv pip compile pyproject.toml --extra gpu --universal --python-version 3.11 --no-header --no-annotate -o requirements/gpu.lock

clean:
	rm -rf .venv runs data
