# Two commands for newcomers: `make demo` and `make test`. Both set up what they need by themselves,
# in .venv and .agents; what they fetch is kept in the usual caches outside this folder.

PYTHON := $(shell for name in python3.13 python3.12 python3.11 python3; do \
	command -v $$name >/dev/null && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& command -v $$name && break; done)
BIN := .venv/bin
AGENT ?= claude-code
# Most tests wait for real processes; more than a few at once would only wait for each other.
WORKERS := -n auto --maxprocesses 4 --dist worksteal

.PHONY: help demo faults support test test-all check agents chromium bench pictures golden clean

help:
	@echo 'make demo    one traced turn, no account needed (AGENT=claude-code)'
	@echo 'make test    everything that CI runs: lint, types, tests, real agents'
	@echo 'make test-all  the same with real backends of a gigabyte each, as CI does'
	@echo 'make pictures  docs/pictures anew, from real agents at work'
	@echo 'make faults  every fault injected, huge loads, long fuzzing; prints the tables'
	@echo 'make bench   the figures, as ratios measured side by side'
	@echo 'make clean   remove what the others made here'

demo: .venv/ready
	@if command -v npm >/dev/null; then $(BIN)/python tests/real_agents/install.py >/dev/null || true; \
	else echo 'npm is missing, so the demo runs with a stand-in agent; install Node.js for the real one'; fi
	@$(BIN)/tracebridge demo --agent $(AGENT)

test: .venv/ready agents chromium check
	$(BIN)/pytest $(WORKERS)

test-all: .venv/ready agents chromium check
	CI=true $(BIN)/pytest $(WORKERS)

# The README's support table anew, from what the real agents show.
support: .venv/ready agents
	$(BIN)/pytest $(WORKERS) --update-support tests/real_agents

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

agents: .venv/ready
	@$(BIN)/python tests/real_agents/install.py

# The browser that the report is tested in.
chromium:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if test "$$(id -u)" != 0; then echo 'Chromium is missing; on Debian: sudo apt-get install chromium'; exit 1; fi; \
	for try in 1 2 3; do \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	chromium fonts-dejavu-core >/dev/null && command -v chromium && exit 0; \
	echo "attempt $$try to install Chromium failed"; sleep 5; done; \
	echo 'no Chromium: can apt-get reach its package source?'; exit 1

# Terminal captures and the report's screenshot, of real agents at work.
pictures: .venv/ready agents chromium
	$(BIN)/python tests/real_agents/pictures.py docs/pictures

# The long versions of what `make test` does in short.
faults: .venv/ready
	$(BIN)/python tests/faults/run.py
	$(BIN)/python tests/load/run.py
	TRACEBRIDGE_FUZZ=40 $(BIN)/pytest -q tests/fuzz tests/test_chaos.py
	$(BIN)/python tests/secrets/compare.py

bench: .venv/ready agents
	@for file in tests/bench/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

golden: .venv/ready
	$(BIN)/pytest -q tests/agents --update-golden

clean:
	rm -rf .venv .agents .mypy_cache .ruff_cache .pytest_cache .hypothesis dist

# Up to date as long as pyproject.toml is older.
.venv/ready: pyproject.toml
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is missing; install it and run make again'; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	{ echo '$(PYTHON) has no venv module; on Debian: apt install python3-venv'; exit 1; }
	@echo 'setting up .venv with $(PYTHON)'
	@$(PYTHON) -m venv .venv
	@for try in 1 2 3; do \
	$(BIN)/pip install --quiet --disable-pip-version-check 'pip>=25.1' && \
	$(BIN)/pip install --quiet --disable-pip-version-check --group dev --editable '.[all]' && exit 0; \
	echo "attempt $$try to install the Python packages failed"; done; \
	echo 'no Python packages: is a package index reachable (pip config list)?'; exit 1
	@touch .venv/ready
