# Short names for the project's commands. Each target is one or two python commands, shown beside it, so that the same thing can be
# typed without make (on Windows: .venv\Scripts\python in place of .venv/bin/python). No logic belongs here: it goes to Python.

PYTHON ?= python3
VENV   := $(CURDIR)/.venv
ifeq ($(OS),Windows_NT)
BIN    := Scripts
else
BIN    := bin
endif
PY     := $(VENV)/$(BIN)/python
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all lint types serve bench zoo-check

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-14s%s\n", $$1, $$2}'

# python3 -m venv .venv; .venv/bin/python -m pip install -r requirements.txt
setup: $(STAMP) ## Create .venv and install requirements.txt into it (about 5 minutes)

$(STAMP): requirements.txt requirements-bundle.txt
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit(f'Python 3.11 or 3.12 is needed, found {v}: make PYTHON=/path/to/python3.11 ...')"
	$(PYTHON) -m venv "$(VENV)"
	"$(PY)" -m pip install --quiet -r requirements.txt
	"$(PY)" -c "open(r'$(STAMP)', 'w').close()"

# cd bundle; ../.venv/bin/python -m scripts.demo
demo: $(STAMP) ## Train, evaluate and segment small phantoms, with pictures (at most 10 minutes)
	cd bundle && "$(PY)" -m scripts.demo

# .venv/bin/python -m pytest -m "not slow" --numprocesses logical --maxprocesses 4 --dist worksteal
test: $(STAMP) ## Tests but the slow ones
	"$(PY)" -m pytest -m "not slow" --numprocesses logical --maxprocesses 4 --dist worksteal

# .venv/bin/python -m pytest -m slow --numprocesses logical --maxprocesses 4 --dist worksteal
test-slow: $(STAMP) ## The slow tests alone: whole documents, servers, the model zoo's unit tests
	"$(PY)" -m pytest -m slow --numprocesses logical --maxprocesses 4 --dist worksteal

# .venv/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal --cov --cov-report=term
test-all: $(STAMP) ## Every test, with line coverage
	"$(PY)" -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal --cov --cov-report=term

# .venv/bin/python -m ruff check .; .venv/bin/python -m ruff format --check .; and, with PYTHONPATH=bundle, .venv/bin/lint-imports
lint: $(STAMP) ## Style, format and the layers of the architecture, changing nothing
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	PYTHONPATH=bundle "$(VENV)/$(BIN)/lint-imports" --no-cache --no-logo

# .venv/bin/python -m mypy bundle/scripts monailabel_app
types: $(STAMP) ## Type check of bundle/scripts and monailabel_app
	"$(PY)" -m mypy bundle/scripts monailabel_app

# .venv/bin/python -m monailabel_app --studies DIR [--models tissnet_vs,tissnet_glioma] [--port 8000]; or --demo
serve: $(STAMP) ## Serve the scans of STUDIES=DIR to 3D Slicer and OHIF; without it, phantoms and the demonstration weights
	"$(PY)" -W ignore -m monailabel_app $(if $(STUDIES),--studies "$(STUDIES)",--demo) $(SERVE_OPTIONS)

# .venv/bin/python tests/benchmarks/bench_inference.py; the same with --planar; .venv/bin/python tests/benchmarks/bench_step.py ...
bench: $(STAMP) ## Seconds, memory and agreement: inference on every engine, one training step (some 25 minutes)
	"$(PY)" -W ignore tests/benchmarks/bench_inference.py --turns 3 --warm-up 1
	"$(PY)" -W ignore tests/benchmarks/bench_inference.py --planar
	"$(PY)" -W ignore tests/benchmarks/bench_step.py --batch 1 --discriminator-features 16 --turns 2

# .venv/bin/python -m pytest tests/test_zoo.py -v
zoo-check: $(STAMP) ## The MONAI model zoo's checks of the bundle
	"$(PY)" -m pytest tests/test_zoo.py -v
