# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests start some hundred processes of ours. Each would compile every module again where this is set.
export PYTHONDONTWRITEBYTECODE :=
PYTHON_IS_NEW = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedmq needs Python 3.11 or newer, this is " + sys.version)'

.PHONY: demo test test-full test-brokers check lint prose types imports unit soak fuzz bench-smoke broker-installed clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON_IS_NEW)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[all,dev]'
	touch $@ $(VENV)/.demo

# The demo trains with Keras and draws its picture with matplotlib; it needs nothing of `dev`.
$(VENV)/.demo: pyproject.toml
	$(PYTHON_IS_NEW)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[all]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/fedmq demo $(ARGS)

# RabbitMQ for the integration and chaos tests. If this machine does not let us install it, those tests skip loudly.
broker-installed:
	@bash tests/install_rabbitmq.sh

# Four processes share the tests, because much of the time is waiting. Each has a private RabbitMQ. WORKERS=0 uses one.
WORKERS ?= 4
SHARED_OUT := -n $(WORKERS) --dist worksteal

test: $(VENV)/.installed broker-installed
	$(BIN)/pytest $(SHARED_OUT) $(ARGS)

# The same with the long variants of the chaos tests: every fault point by itself, and a cluster of three nodes.
test-full: export FULL_TESTS = 1
test-full: test

# Tests that speak to a broker, on this machine's RabbitMQ and then on RabbitMQ 4 (unpacked once, into a cache folder).
BROKER_TESTS = -m broker tests/contract tests/integration tests/security $(wildcard tests/chaos)
test-brokers: $(VENV)/.installed broker-installed
	@$(BIN)/python -c 'from fedmq.broker_config.node.node import find_server; print("fedmq: testing on", find_server())'
	$(BIN)/pytest $(SHARED_OUT) $(BROKER_TESTS) $(ARGS)
	@sbin="$$(tests/rabbitmq4.sh $(if $(RABBITMQ4_DIR),"$(RABBITMQ4_DIR)"))" && if [ -n "$$sbin" ]; then \
	    echo "fedmq: testing on RabbitMQ $$("$$sbin/rabbitmqctl" --version) in $$sbin"; \
	    FEDMQ_RABBITMQ_SBIN="$$sbin" $(BIN)/pytest $(SHARED_OUT) $(BROKER_TESTS) $(ARGS); \
	fi

# The unit tests wait for nothing, so they take two processes.
UNIT_WORKERS ?= 2
unit: $(VENV)/.installed
	$(BIN)/pytest -n $(UNIT_WORKERS) --dist worksteal tests/unit $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_prose.py

# The mechanical half of the prose rules. To check some files only: make prose ARGS="coordinator docs/guide.md".
prose: $(VENV)/.installed
	$(BIN)/python tools/check_prose.py $(ARGS)

types: $(VENV)/.installed
	$(BIN)/mypy

imports: $(VENV)/.installed
	$(BIN)/lint-imports

# Ten minutes of killed processes. Set another length and schedule with ARGS="--seconds 60 --seed 7".
soak: $(VENV)/.installed broker-installed
	$(BIN)/python -m tests.chaos.soak $(ARGS)

# Bad messages to a coordinator and a participant. More, or others: make fuzz ARGS="--messages 1000000 --seed 7".
# In a codec alone: ARGS="--which coded", or "--which reader" for the decoding without a coordinator around it.
fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.security.fuzz $(ARGS)

check: lint types imports test

bench-smoke: $(VENV)/.installed broker-installed
	$(BIN)/python -m bench.smoke

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
