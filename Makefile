# Two commands matter: `make quickstart` and `make test`. Both install what they need into .venv first; a second run
# finds it there. PYTHON=python3.12 chooses the interpreter. Without make: see README.md for the same steps.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
LOG := $(VENV)/install.log
MODEL := models/SmolLM2-135M-Instruct

# Torch's CUDA build brings its own Triton; beside the CPU build this one runs the kernels in its interpreter.
TRITON := triton==3.6.0

# Tests run in two processes of one thread each: on two cores as fast as it goes, and no slower on more.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) -q

# The library alone, for any x86-64 or Arm processor: no tools, no server, no multimodal parts.
LLAMA := llama-cpp-python==0.3.36
LLAMA_BUILD := -DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF \
	-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DGGML_OPENMP=OFF

.DEFAULT_GOAL := help
.PHONY: help quickstart test fast slow llama check lint format types docs lock clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{printf "%-18s %s\n", $$1, $$2}'

quickstart: $(VENV)/.installed  ## get a small model and real data, fine-tune, compare before and after (EPOCHS=3: the full run)
	@$(PY) scripts/quickstart.py

test: fast slow  ## all tests, the fast ones first

fast: $(VENV)/.installed-dev $(MODEL)/config.json  ## tests that take seconds
	$(PYTEST) -m "not slow"

slow: $(VENV)/.installed-dev $(MODEL)/config.json  ## tests that train, generate or convert
	$(PYTEST) -m slow

llama: $(VENV)/.installed-dev  ## llama.cpp, with which export checks GGUF files (compiles some minutes; its tests are left out without)
	@$(PY) -c 'import llama_cpp' 2>/dev/null || { echo "compiling $(LLAMA) ($(LOG))" && \
		CMAKE_ARGS="$(LLAMA_BUILD)" $(PIP) install $(LLAMA) >>$(LOG) 2>&1; } || \
		{ tail -20 $(LOG); echo "error: llama.cpp could not be built; all of it: $(LOG)"; exit 2; }

check: lint types test  ## all that CI runs

lint: $(VENV)/.installed-dev  ## ruff: format and rules
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: $(VENV)/.installed-dev  ## let ruff rewrite what it can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

types: $(VENV)/.installed-dev  ## mypy, strict, on src
	$(PY) -m mypy

docs: $(VENV)/.installed-dev  ## the documentation's site, into build/docs/site; fails at a link that leads nowhere
	$(PY) scripts/build_docs.py

lock: $(VENV)/.installed-dev  ## refresh requirements*.txt from pyproject.toml (UPGRADE=--upgrade: newest versions)
	$(PIP) install --quiet uv
	$(PY) scripts/lock.py $(UPGRADE)

clean:  ## remove caches and builds; models, data, runs and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info
	find src tests scripts -name __pycache__ -type d -exec rm -rf {} +

# A venv that an interruption left without pip is made anew.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12 …"; exit 2; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "error: $(PYTHON) cannot make a virtual environment (Debian: apt install python3-venv)"; exit 2; }
	@touch $@

# setuptools is among the pins, so the package itself is installed without asking the network for it.
$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/.python
	@echo "installing pinned packages into $(VENV) (minutes the first time; $(LOG))"
	@{ $(PIP) install -r requirements.txt && $(PIP) install --no-deps --no-build-isolation -e . ; } >$(LOG) 2>&1 || \
		{ grep -v '^WARNING' $(LOG) | tail -20; echo "error: the installation failed; all of it: $(LOG)"; exit 2; }
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "installing the tests' packages into $(VENV)"
	@$(PIP) install -r requirements-dev.txt >$(LOG) 2>&1 || \
		{ grep -v '^WARNING' $(LOG) | tail -20; echo "error: the installation failed; all of it: $(LOG)"; exit 2; }
	@$(PY) -c 'import triton' 2>/dev/null || $(PIP) install --no-deps $(TRITON) >>$(LOG) 2>&1 || \
		echo "Triton cannot be installed here: the kernels' own tests are left out, their references are tested"
	@touch $@

$(MODEL)/config.json: | $(VENV)/.installed
	$(PY) scripts/get_model.py --output $(MODEL)
