# Two commands: `make demo` and `make test`.  Both make .venv first if need be.

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
FUZZ_SECONDS ?= 600
KILLS ?= 3

.PHONY: demo test producers epics-tools test-slow test-faults fuzz lint lock tiled rtx web clean

demo: .venv/installed
	$(BIN)/quietbeam demo $(ARGS)

test: .venv/installed lint
	$(BIN)/python tests/fuzz/decoders.py --seconds 20
	$(BIN)/python -m pytest -q $(ARGS)

fuzz: .venv/installed  ## hostile input for longer: make fuzz FUZZ_SECONDS=3600
	$(BIN)/python tests/fuzz/decoders.py --seconds $(FUZZ_SECONDS)

producers:  ## simulators that others wrote, each in an environment of its own, for test-slow
	for list in tests/producers/*.txt; do \
		home=.venv-producers/$$(basename $$list .txt); \
		$(PYTHON) -m venv $$home; \
		$$home/bin/python -m pip install --quiet --disable-pip-version-check -r $$list || exit 1; \
	done

epics-tools: .venv/installed  ## EPICS base's caget, pvget, ... built against the installed wheels (gcc, g++)
	tests/producers/epics-tools .venv-producers/epics-tools $(BIN)/python

test-slow: .venv/installed  ## longer tests: real producers, soak, many kills
	$(BIN)/python -m pytest -q -m slow --timeout 600 $(ARGS)

test-faults: .venv/installed  ## every fault, written to tests/faults/RESULTS.md: make test-faults KILLS=50
	QUIETBEAM_FAULT_KILLS=$(KILLS) QUIETBEAM_FAULT_TABLE=tests/faults/RESULTS.md \
		$(BIN)/python -m pytest -q -m "" tests/faults $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	PYTHONPATH=daemon:plugins $(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

tiled: .venv/installed  ## what tests with a Tiled server need besides (0.7 GB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[tiled]'

rtx: .venv/installed  ## TensorRT for RTX (0.25 GB): plans are then built in tests, without a GPU
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[rtx]'

web:  ## build the live page from plugins/web into the plugin's static folder (node >= 20)
	cd plugins/web && npm ci --no-audit --no-fund && npm run build && npm test

lock: .venv/installed  ## write deploy/constraints.txt from what is installed
	$(BIN)/pip freeze --exclude-editable | grep -v '^-e ' | sed 's/+cpu$$//; s/ @ .*//' > deploy/constraints.txt

clean:
	rm -rf .venv .venv-producers build dist .pytest_cache .ruff_cache .import_linter_cache

# A plain build of torch is asked for by its exact version, so that a machine
# without a GPU gets the CPU build where one is offered.
.venv/installed: pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[dev]'
	touch $@
