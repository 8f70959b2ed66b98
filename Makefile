# Every target prepares what it needs: on a fresh machine with Python >= 3.11 nothing else has to be run first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPED := build/typecheck/helios_serve
NODE_READY := build/node/.ready
BROWSERS := chromium chromium-browser google-chrome

# The repository's own kernels/ must never shadow Hugging Face's package of that name.
export PYTHONSAFEPATH = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: install serve format lint typecheck test test-slow node browser test-integrations bench wheel clean

install: $(READY)  ## a virtual environment with this package, editable, and the development tools, pinned

# torch comes first and alone, so that the pinned build is chosen before anything asks for "some torch".
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "helios-serve needs Python >= 3.11, got $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

serve: $(READY)  ## the video API, with the built-in model, at http://127.0.0.1:8000
	$(BIN)/helios-serve serve

format: $(READY)
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: $(READY)
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

# mypy reads the tree as it is imported, not as it is stored.
typecheck: $(READY)
	rm -rf $(TYPED) && mkdir -p $(TYPED)
	ln -s $(CURDIR)/helios_serve/* $(CURDIR)/model_executor $(CURDIR)/kernels $(TYPED)
	MYPYPATH=build/typecheck $(BIN)/mypy -p helios_serve

test: $(READY)  ## everything fast
	$(BIN)/pytest -m "not slow"

test-slow: $(READY) node browser  ## full matrices, faults, soaks, fuzzing
	$(BIN)/pytest -m slow

node: $(NODE_READY)  ## the official client for Node, pinned, which a slow test runs

$(NODE_READY): tests/entrypoints/node/package.json tests/entrypoints/node/create_and_download.mjs
	@{ command -v node && command -v npm; } > /dev/null || \
	  { echo "make node needs Node.js >= 20 with npm, got none on the PATH"; exit 1; }
	@mkdir -p $(@D) && cp $^ $(@D)
	cd $(@D) && npm install --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

browser:  ## Chromium, for the playground's tests: one on PATH, or Debian's
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium; \
	else \
	  echo "The playground's tests need a browser: install one of $(BROWSERS)."; exit 1; \
	fi

test-integrations: $(READY)  ## the real engines we plug into
	@echo "No engine integrations yet."

bench: $(READY)  ## results go to benchmarks/results
	$(BIN)/python benchmarks/vs_diffusers.py --output benchmarks/results/vs_diffusers_cpu.json
	$(BIN)/python benchmarks/scheduler.py --output benchmarks/results/scheduler.json \
	  --plot benchmarks/results/scheduler.png
	$(BIN)/python benchmarks/admission.py --output benchmarks/results/admission_nano.json
	$(BIN)/python benchmarks/overhead.py --output benchmarks/results/overhead_nano.json
	$(BIN)/python benchmarks/edge.py --output benchmarks/results/edge_nano.json

wheel: $(READY)
	$(BIN)/python -m build

clean:
	rm -rf build dist *.egg-info
