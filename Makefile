# Two commands for newcomers: `make demo` and `make test`. Both set up what they need by themselves,
# in .venv and .agents; what they fetch is kept in the usual caches outside this folder.

PYTHON := $(shell for name in python3.13 python3.12 python3.11 python3; do \
	command -v $$name >/dev/null && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& command -v $$name && break; done)
BIN := .venv/bin
AGENT ?= claude-code
# Most tests wait for real processes; more than a few at once would only wait for each other.
WORKERS := -n auto --maxprocesses 4 --dist worksteal

.PHONY: help demo faults load fuzz secrets support test test-all check agents chromium redis nginx bench bench-rivals pictures golden clean

help:
	@echo 'make demo    one traced turn, no account needed (AGENT=claude-code)'
	@echo 'make test    everything that CI runs: lint, types, tests, real agents'
	@echo 'make test-all  the same with real backends of a gigabyte each, as CI does'
	@echo 'make pictures  docs/pictures anew, from real agents at work'
	@echo 'make faults  every fault injected: what was lost, doubled, changed'
	@echo 'make load    much at once; make fuzz: odd bytes; make secrets: what is found and what is not'
	@echo 'make bench   the figures, as ratios measured side by side'
	@echo 'make bench-rivals  the same beside other people'"'"'s hooks and gateways'
	@echo 'make clean   remove what the others made here'

demo: .venv/ready
	@if command -v npm >/dev/null; then $(BIN)/python tests/real_agents/install.py >/dev/null || true; \
	else echo 'npm is missing, so the demo runs with a stand-in agent; install Node.js for the real one'; fi
	@$(BIN)/tracebridge demo --agent $(AGENT)

test: .venv/ready agents chromium redis check
	$(BIN)/pytest $(WORKERS)

test-all: .venv/ready agents chromium redis check
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

# What the replicas of a relay share.
redis:
	@for name in redis-server valkey-server; do command -v $$name >/dev/null && exit 0; done; \
	if test "$$(id -u)" != 0; then echo 'Redis is missing; on Debian: sudo apt-get install redis-server'; exit 1; fi; \
	for try in 1 2 3; do \
	apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	redis-server >/dev/null && command -v redis-server && exit 0; \
	echo "attempt $$try to install Redis failed"; sleep 5; done; \
	echo 'no Redis: can apt-get reach its package source?'; exit 1

# Terminal captures and the report's screenshot, of real agents at work.
pictures: .venv/ready agents chromium
	$(BIN)/python tests/real_agents/pictures.py docs/pictures

# The long versions of what `make test` does in short; each prints a table.
faults: .venv/ready
	$(BIN)/python tests/faults/run.py

load: .venv/ready
	$(BIN)/python tests/load/run.py

# Led by chance, then by what is reached; atheris has no wheel for every machine.
fuzz: .venv/ready
	TRACEBRIDGE_FUZZ=40 $(BIN)/pytest -q tests/fuzz tests/test_chaos.py
	$(BIN)/pip install --quiet --disable-pip-version-check --group fuzz
	$(BIN)/python tests/fuzz/guided.py --seconds 60

secrets: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --group secrets
	$(BIN)/python tests/secrets/compare.py

bench: .venv/ready agents
	$(BIN)/python tests/bench/run.py

# The same beside other people's hooks and gateways: nginx, LiteLLM (a gigabyte) and more.
bench-rivals: .venv/ready agents nginx
	$(BIN)/python tests/bench/run.py --rivals

# What the gateway is measured against. Only the program is used, as a process of its own.
nginx:
	@PATH="$$PATH:/usr/sbin" command -v nginx >/dev/null && exit 0; \
	if test "$$(id -u)" != 0; then echo 'nginx is missing; on Debian: sudo apt-get install nginx-light'; exit 1; fi; \
	apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	nginx-light >/dev/null

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
	@$(PYTHON) -m venv --clear .venv
	@for try in 1 2 3; do \
	$(BIN)/pip install --quiet --disable-pip-version-check 'pip>=25.1' && \
	$(BIN)/pip install --quiet --disable-pip-version-check --group dev --editable '.[all]' && exit 0; \
	echo "attempt $$try to install the Python packages failed"; done; \
	echo 'no Python packages: is a package index reachable (pip config list)?'; exit 1
	@touch .venv/ready
