# Each target first builds its own virtual environment, so any of them works as the first command.
PYTHON ?= python3
VENV ?= .venv
VENV_OLDEST ?= $(VENV)-oldest
VENV_ECOSYSTEM ?= $(VENV)-ecosystem
DATA_ROOT ?= data/cifar10
# `make coverage TESTS=tests/core COVER=kakurenbo_lightning/core` measures a part
TESTS ?= tests
COVER ?= kakurenbo_lightning
# where `make release-check` installs the wheel: a temporary folder, unless one is given, which is kept and used again
RELEASE_VENV ?=

# The stamp is written last and carries the hash of pyproject.toml: no stamp, no finished environment.
STAMP = .installed-$(shell $(PYTHON) -c "import hashlib; print(hashlib.sha256(open('pyproject.toml', 'rb').read()).hexdigest()[:16])")
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv train test test-all test-oldest test-ecosystem test-gpu coverage bench controls losers lint docs screenshots release-check clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

train: $(VENV)/$(STAMP) ## train baseline and KAKURENBO on digits and compare them (1 to 3 minutes)
	$(BIN)/kakurenbo-train experiment=quickstart

test: $(VENV)/$(STAMP) ## run the fast tests
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/$(STAMP) test-oldest ## run every test, also against the oldest supported torch and Lightning
	$(BIN)/python -m pytest -n 2 -m ""

test-oldest: $(VENV_OLDEST)/$(STAMP) ## run the fast tests against the oldest supported torch and Lightning
	$(VENV_OLDEST)/bin/python -m pytest -n 2

test-ecosystem: $(VENV_ECOSYSTEM)/$(STAMP) ## try the callback on transformers, timm, MONAI, smp, PyTorch Geometric and four more
	$(VENV_ECOSYSTEM)/bin/python -m pytest -n 2 tests/ecosystem

test-gpu: $(VENV)/$(STAMP) ## run the fast tests with their Trainers on a GPU
	KAKURENBO_TEST_ACCELERATOR=gpu $(BIN)/python -m pytest -n 4

coverage: $(VENV)/$(STAMP) ## run the fast tests and list the package's lines that none of them reaches; at least 95 % must be
	$(BIN)/python -m pytest -n 2 --cov=$(abspath $(COVER)) $(TESTS)

bench: $(VENV)/$(STAMP) ## measure overhead, selection, plans, saving, backprop, checkpoints, records and fractals; kill and resume 100 times
	$(BIN)/python -m recipes.benchmarks.overhead
	$(BIN)/python -m recipes.benchmarks.selection
	$(BIN)/python -m recipes.benchmarks.plans
	$(BIN)/python -m recipes.benchmarks.saving
	$(BIN)/python -m recipes.benchmarks.backprop
	$(BIN)/python -m recipes.benchmarks.checkpoint
	$(BIN)/python -m recipes.benchmarks.recording
	$(BIN)/python -m recipes.benchmarks.fractal
	$(BIN)/python -m recipes.benchmarks.faults

controls: $(VENV)/$(STAMP) ## train methods and their controls on CIFAR-10 in DATA_ROOT (40 minutes)
	$(BIN)/python -m recipes.benchmarks.controls --data-root $(DATA_ROOT)

losers: $(VENV)/$(STAMP) ## train the backprop family and controls on CIFAR-10 in DATA_ROOT (50 minutes)
	$(BIN)/python -m recipes.benchmarks.losers --data-root $(DATA_ROOT)

lint: $(VENV)/$(STAMP) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/$(STAMP) ## build the documentation into build/docs, without a network; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file .ci/mkdocs.yml

screenshots: $(VENV)/$(STAMP) ## train on digits and make the pictures of programs in docs/ (needs chromium)
	$(BIN)/python .ci/screenshots.py

release-check: $(VENV)/$(STAMP) ## build sdist and wheel, install the wheel with core dependencies alone and train with it
	PYTHON="$(PYTHON)" .ci/release-check $(BIN)/python "$(RELEASE_VENV)"

venv: $(VENV)/$(STAMP) ## build the virtual environment and nothing else

clean: ## delete caches and build results (environments and outputs stay)
	rm -rf build dist .coverage .pytest_cache .ruff_cache .hypothesis
	find kakurenbo_lightning recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV_OLDEST)/$(STAMP): CONSTRAINTS = --constraint .ci/oldest.txt
$(VENV_ECOSYSTEM)/$(STAMP): CONSTRAINTS = --requirement .ci/ecosystem.txt
%/$(STAMP):
	@PYTHON="$(PYTHON)" .ci/venv "$*" "$(STAMP)" $(CONSTRAINTS)
