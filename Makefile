# What CI runs, and nothing that only CI runs. Each target makes .venv and installs what it needs, once.
#   make demo    train a tiny model on this machine, then talk with it
#   make test    the default tests
#   make check   lint, format, types
#   make native  build the native core alone and run its own tests
#   make sanitize  the same with address and undefined-behaviour sanitizers
#   make clean   remove .venv, caches and the demo's run

PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
DEMO ?= runs/demo

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo test check native sanitize clean

demo: $(VENV)/.train
	$(BIN)/headwater recipe smoke --out $(DEMO)
	@echo; echo "Two questions, piped into: headwater chat $(DEMO)/model"
	printf 'Hello!\nWho are you?\n' | $(BIN)/headwater chat $(DEMO)/model --max-tokens 60
	@echo; echo "Talk on with: $(BIN)/headwater chat $(DEMO)/model"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $$(nproc)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

native:
	cmake -S native -B build/native
	cmake --build build/native --parallel
	ctest --test-dir build/native --output-on-failure

sanitize:
	cmake -S native -B build/sanitize -DHEADWATER_SANITIZE=ON
	cmake --build build/sanitize --parallel
	ctest --test-dir build/sanitize --output-on-failure

clean:
	rm -rf $(VENV) build dist $(DEMO) .pytest_cache .hypothesis .ruff_cache .mypy_cache

# torch before everything else. On Linux the plain wheel brings gigabytes of CUDA, so the CPU wheel is asked for: first
# by its version, where pip is set up to know it, then from torch's own index; the plain wheel is the last resort.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"headwater needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(PIP) install -q --retries 1 --timeout 20 --index-url $(CPU_INDEX) "torch==$(TORCH)" \
	  || $(PIP) install -q "torch==$(TORCH)"
	@touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -e '.[train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -e '.[dev]'
	@touch $@
