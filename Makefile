# Every target prepares what it needs: on a fresh machine with Python >= 3.11 nothing else has to be run first.
PYTHON ?= python3
# `make test TORCH=2.11` uses the versions of constraints-torch-2.11.txt, in an environment of its own.
TORCH ?=
VENV := .venv$(if $(TORCH),-torch-$(TORCH))
CONSTRAINTS := $(if $(TORCH),build/constraints-torch-$(TORCH).txt,constraints.txt)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TREE := build/tree
CHECKED := build/checked
NODE_READY := build/node/.ready
ENVIRONMENTS := tests/integrations/environments
WORKERS ?= 2
# A module runs in one of the pytest processes, so that its tests share their servers and models. They run in the order
# of the files, of which the last ones are short: those with few tests are not.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
SLOW := slow and not vllm_omni and not sglang
BROWSERS := chromium chromium-browser google-chrome
NANO := build/nano
PROMETHEUS := build/prometheus
BALANCERS := build/balancers
# Helm as a library, with its renderer and its linter: 255 MB.
HELM := build/helm
HELM_PACKAGE := helm-python-sdk==0.2.2
# HAProxy and nginx, with the libraries that a minimal Debian lacks.
BALANCER_PACKAGES := haproxy nginx liblua5.3-0 libopentracing-c-wrapper0 libopentracing1
# The Python of the machine with the GPU, which may be another than this machine's: some wheels are for one version only.
TARGET_PYTHON ?= 3.12
TARGET_PLATFORMS := manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
WHEELS := build/wheels
GPU_PACKAGES := build/gpu-packages
# What the programs of bench-gpu and the tests of gpu-first-contact import beside torch, triton and transformers.
GPU_NEEDS := accelerate av diffusers ftfy iniconfig msgspec pillow pluggy prometheus-client psutil pygments pytest wcwidth
GPU_IMPORTS := accelerate, av, diffusers, ftfy, msgspec, PIL, prometheus_client, psutil, pytest, wcwidth
ON_GPU = PYTHONPATH=$(TREE):$(GPU_PACKAGES) PYTHONUNBUFFERED=1 timeout --kill-after=10 470 $(PYTHON)
RESULTS := benchmarks/results

# The repository's own kernels/ must never shadow Hugging Face's package of that name.
export PYTHONSAFEPATH = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install serve docs site format lint typecheck test test-slow node browser prometheus balancers helm test-integrations test-vllm-omni test-sglang \
  tree bench bench-kernels bench-gpu bench-gpu-transformer bench-gpu-whole-way bench-gpu-fp8 bench-gpu-vae \
  bench-gpu-vae-compiled bench-gpu-diffusers gpu-first-contact gpu-packages nano-train nano-check wheels wheel clean

# The first target, so that `make` alone prints it.
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(READY)  ## create .venv with this package, editable, and the pinned development tools

# torch comes first and alone, so that the pinned build is chosen before anything asks for "some torch".
$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "helios-serve needs Python >= 3.11, got $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Creating $(VENV), which takes a few minutes and about 3 GB of disk; 8 GB where torch comes with CUDA."
	@date +%s > $(VENV).started
	$(PYTHON) -m venv $(VENV)
	@echo "1 of 2: torch, the largest package"
	$(BIN)/pip install -q -c $(CONSTRAINTS) torch
	@echo "2 of 2: helios-serve, with Ray and the development tools"
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e ".[bench,ray,dev]"
	@touch $@
	@echo "$(VENV) is ready: $$(du -sh $(VENV) | cut -f1) in $$(( $$(date +%s) - $$(cat $(VENV).started) )) s. Next: make serve"
	@rm -f $(VENV).started

# What the special file pins, and of constraints.txt what it does not.
build/constraints-torch-%.txt: constraints-torch-%.txt constraints.txt
	@mkdir -p $(@D)
	awk -F== '/^#/ {next} NR == FNR {pinned[$$1]} NR == FNR || !($$1 in pinned)' $^ > $@

serve: $(READY)  ## serve the video API with the built-in model at http://127.0.0.1:8000
	$(BIN)/helios-serve serve

docs: $(READY)  ## write docs/options.md from the options
	$(BIN)/python -m helios_serve.entrypoints.cli.options_document > docs/options.md

site: $(READY)  ## build the pages of docs/ into build/site; links that lead nowhere are errors
	$(BIN)/mkdocs build --strict --quiet

format: $(READY)  ## format the code and fix what ruff can fix
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: $(READY)  ## check formatting and style
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

# The tree as it is imported, not as it is stored, with the version that an installation would know.
tree:  ## link the sources into build/tree as they are imported, for PYTHONPATH and mypy
	rm -rf $(TREE) && mkdir -p $(TREE)/helios_serve $(TREE)/helios_serve-source.dist-info
	ln -s $(CURDIR)/helios_serve/* $(CURDIR)/model_executor $(CURDIR)/kernels $(CURDIR)/benchmarks $(TREE)/helios_serve
	{ echo "Name: helios-serve"; sed -n 's/^version = "\(.*\)"/Version: \1/p' pyproject.toml; } \
	  > $(TREE)/helios_serve-source.dist-info/METADATA

# `tests` is linked away from the root, where kernels/ would be a package too. The micro-benchmarks are checked
# as helios_serve.benchmarks.micro.
typecheck: $(READY) tree  ## check the types of the package, tests, benchmarks and examples
	mkdir -p $(CHECKED) && ln -sfn $(CURDIR)/tests $(CHECKED)
	MYPYPATH=$(TREE):$(CHECKED) $(BIN)/mypy -p helios_serve -p tests
	$(BIN)/mypy examples

test: $(READY)  ## run the fast tests
	$(BIN)/pytest $(PARALLEL) -m "not slow and not vllm_omni and not sglang"

test-slow: $(READY) node browser prometheus balancers helm  ## run the slow tests: full matrices, faults, soaks, fuzzing
	$(BIN)/pytest $(PARALLEL) -m "$(SLOW) and not alone"
	$(BIN)/pytest -m "$(SLOW) and alone"

node: $(NODE_READY)  ## install the pinned OpenAI client for Node, which a slow test runs

$(NODE_READY): tests/entrypoints/http/node/package.json tests/entrypoints/http/node/create_and_download.mjs
	@{ command -v node && command -v npm; } > /dev/null || \
	  { echo "make node needs Node.js >= 20 with npm, got none on the PATH"; exit 1; }
	@mkdir -p $(@D) && cp $^ $(@D)
	cd $(@D) && npm install --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

browser:  ## install Chromium for the playground's tests, unless there is one on PATH
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium; \
	else \
	  echo "The playground's tests need a browser: install one of $(BROWSERS)."; exit 1; \
	fi

prometheus:  ## get Debian's Prometheus for a test of the dashboard, unless there is one on PATH
	@command -v prometheus > /dev/null || [ -x $(PROMETHEUS)/usr/bin/prometheus ] || { \
	  command -v apt-get > /dev/null || { echo "The test of docs/grafana.json needs prometheus on the PATH."; exit 1; }; \
	  mkdir -p $(PROMETHEUS); if [ "$$(id -u)" = 0 ]; then apt-get update -qq; fi; \
	  cd $(PROMETHEUS) && apt-get download -qq -o APT::Sandbox::User=root prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb; \
	}

balancers:  ## get Debian's HAProxy and nginx for the tests of cells, unless they are on PATH
	@{ command -v haproxy && command -v nginx; } > /dev/null || [ -x $(BALANCERS)/usr/sbin/haproxy ] || { \
	  command -v apt-get > /dev/null || { echo "The tests of cells need haproxy and nginx on the PATH."; exit 1; }; \
	  mkdir -p $(BALANCERS); if [ "$$(id -u)" = 0 ]; then apt-get update -qq; fi; \
	  cd $(BALANCERS) && apt-get download -qq -o APT::Sandbox::User=root $(BALANCER_PACKAGES) && \
	  for package in *.deb; do dpkg -x $$package .; done && rm *.deb; \
	}

helm: $(READY)  ## get Helm for the tests of the chart
	@[ -d $(HELM)/helm_python ] || $(BIN)/pip install -q --no-deps --target $(HELM) $(HELM_PACKAGE)

test-integrations: test-vllm-omni test-sglang  ## run the tests with the real vLLM-Omni and SGLang

test-vllm-omni: $(READY)  ## run the tests with the real vLLM-Omni, in an environment of its own
	$(BIN)/python $(ENVIRONMENTS)/build.py vllm_omni
	$(BIN)/pytest -m vllm_omni

test-sglang: $(READY)  ## run the tests with the real SGLang, in an environment of its own
	$(BIN)/python $(ENVIRONMENTS)/build.py sglang
	$(BIN)/pytest -m sglang

bench: $(READY)  ## run the CPU benchmarks; results go to benchmarks/results
	$(BIN)/python benchmarks/micro/vae.py --size 128x64 --rounds 3 --compile --output benchmarks/results/vae_cpu.json
	$(BIN)/python benchmarks/micro/vae_vs_diffusers.py --model nano --output benchmarks/results/vae_vs_diffusers_nano.json
	$(BIN)/python benchmarks/micro/vae_vs_diffusers.py --output benchmarks/results/vae_vs_diffusers.json
	$(BIN)/python benchmarks/micro/vs_diffusers.py --output benchmarks/results/vs_diffusers_cpu.json
	$(BIN)/python benchmarks/micro/vs_diffusers.py --sessions 4 --size 128x64 \
	  --output benchmarks/results/vs_diffusers_packed_cpu.json
	$(BIN)/python benchmarks/micro/vs_diffusers.py --dtype bfloat16 --their-dtype float32 \
	  --output benchmarks/results/vs_diffusers_bfloat16_cpu.json
	$(BIN)/python benchmarks/micro/scheduler.py --output benchmarks/results/scheduler.json \
	  --plot benchmarks/results/scheduler.png
	$(BIN)/python benchmarks/simulator/validation.py --output benchmarks/results/simulator_nano.json
	$(BIN)/python benchmarks/simulator/capacity.py
	$(BIN)/python benchmarks/micro/admission.py --output benchmarks/results/admission_nano.json
	$(BIN)/python benchmarks/micro/overhead.py --output benchmarks/results/overhead_nano.json
	$(BIN)/python benchmarks/micro/edge.py --output benchmarks/results/edge_nano.json

bench-kernels: tree  ## time each kernel on a GPU; PYTHON=... needs torch and triton
	PYTHONPATH=$(TREE) $(PYTHON) benchmarks/micro/kernels.py --output benchmarks/results/kernels.json

# First whether anything works, then each part, each with a time limit: at most nine minutes in all.
gpu-first-contact: tree gpu-packages  ## try all on a GPU in 9 minutes and print a table; PYTHON=... as for bench-gpu
	PYTHONPATH=$(TREE):$(GPU_PACKAGES) PYTHONUNBUFFERED=1 timeout --kill-after=10 560 $(PYTHON) \
	  benchmarks/micro/first_contact.py $(FLAGS)

# Parts of less than eight minutes each, so that each fits into a machine that is lent for ten.
bench-gpu: bench-gpu-transformer bench-gpu-whole-way bench-gpu-fp8 bench-gpu-vae bench-gpu-vae-compiled bench-gpu-diffusers  ## time the 14B model on a GPU; PYTHON=... needs torch, triton and transformers

bench-gpu-transformer: tree gpu-packages  ## forwards, chunks and a profile of the transformer
	$(ON_GPU) benchmarks/micro/denoise.py $(FLAGS) --parts forwards,chunks,profile --output $(RESULTS)/denoise.json

bench-gpu-whole-way: tree gpu-packages  ## an engine with transformer, VAE and MP4
	$(ON_GPU) benchmarks/micro/denoise.py $(FLAGS) --parts whole-way --decode-dtype bfloat16 --output $(RESULTS)/whole_way.json

bench-gpu-fp8: tree gpu-packages  ## the same with FP8 layers
	$(ON_GPU) benchmarks/micro/denoise.py $(FLAGS) --parts forwards,chunks,whole-way --quantization fp8 \
	  --decode-dtype bfloat16 --output $(RESULTS)/denoise_fp8.json

bench-gpu-vae: tree gpu-packages  ## the VAE's decoder in each precision and layout
	$(ON_GPU) benchmarks/micro/vae.py $(FLAGS) --output $(RESULTS)/vae.json

bench-gpu-vae-compiled: tree gpu-packages  ## the same, compiled as well
	$(ON_GPU) benchmarks/micro/vae.py $(FLAGS) --rounds 2 --compile --output $(RESULTS)/vae_compiled.json

bench-gpu-diffusers: tree gpu-packages  ## diffusers' pipeline on the same weights
	$(ON_GPU) benchmarks/micro/denoise.py $(FLAGS) $(if $(OFFICIAL),--official $(OFFICIAL)) --parts diffusers \
	  --output $(RESULTS)/vs_diffusers.json

# From wheels, so that they can be taken to a machine that reaches no index: `make wheels` on one that does.
gpu-packages:
	@$(PYTHON) -c 'import $(GPU_IMPORTS)' 2> /dev/null || PYTHONPATH=$(GPU_PACKAGES) $(PYTHON) -c 'import $(GPU_IMPORTS)' 2> /dev/null || { \
	  version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  [ -e $(WHEELS)/$$version/.ready ] || { \
	    echo "$(PYTHON) lacks some of: $(GPU_NEEDS). On a machine that reaches an index: make wheels TARGET_PYTHON=$$version"; exit 1; }; \
	  rm -rf $(GPU_PACKAGES); \
	  $(PYTHON) -m pip install -q --no-index --no-deps --find-links $(WHEELS)/$$version --target $(GPU_PACKAGES) $(GPU_NEEDS); }

nano-train: $(READY)  ## train nano on the CPU, in hours; the same command continues a training
	$(BIN)/python -m helios_serve.model_executor.training all --folder $(NANO)

nano-check: $(READY)  ## measure a trained nano against its gates and print the figures
	$(BIN)/python -m helios_serve.model_executor.training check --folder $(NANO)

wheels: $(WHEELS)/$(TARGET_PYTHON)/.ready  ## download what bench-gpu needs for TARGET_PYTHON (3.12), for a machine without an index

$(WHEELS)/$(TARGET_PYTHON)/.ready:
	@mkdir -p $(@D)
	$(PYTHON) -m pip download -q -c constraints.txt --no-deps --only-binary=:all: --python-version $(TARGET_PYTHON) \
	  --implementation cp $(foreach name,$(TARGET_PLATFORMS),--platform $(name)) -d $(@D) $(GPU_NEEDS)
	@touch $@

wheel: $(READY)  ## build the wheel and the source distribution into dist
	$(BIN)/python -m build

clean:  ## delete what was built
	rm -rf build dist *.egg-info
