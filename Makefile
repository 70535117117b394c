# Everything a fresh machine needs is Python >= 3.11 and make. `make demo` and `make test` do all the set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

unexport PYTHONDONTWRITEBYTECODE # else each of a thousand processes compiles what it loads

.DEFAULT_GOAL := help
.PHONY: help demo observe test check check-native format bench bench-peers long mutants lock clean

help:
	@echo "make demo    replay the bundled conversations against the embedded engine: table, verdict, results folder"
	@echo "make observe the demo with Prometheus and the exporters around it, until Ctrl-C"
	@echo "make test    install what the tests need and run them all"
	@echo "make check   lint, types, layers"
	@echo "make check-native  the reader in C: strict warnings, sanitizers, mutated streams, libFuzzer; instructions an event of both readers"
	@echo "make bench   CPU per event, capacity, stamp error, memory: writes bench/RESULTS.md"
	@echo "make long    what takes hours: ten million requests in virtual time, other random examples in all tests"
	@echo "make bench-peers  other load generators beside this one, true or not, each installed by itself: bench/PEERS.md"
	@echo "make mutants break each guard of the program, one line at a time, in a copy: a test must notice"
	@echo "make lock    renew requirements.lock and requirements-dev.lock"

$(VENV)/base: requirements.lock pyproject.toml .ci/build_reader.py $(wildcard tokenswarm/*/_*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (locked versions)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/tokenswarm --version
	@touch $@

$(VENV)/dev: requirements-dev.lock $(VENV)/base
	@echo "installing what the tests need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

demo: $(VENV)/base
	@$(BIN)/tokenswarm demo

observe: $(VENV)/base
	@$(BIN)/tokenswarm observe

test: $(VENV)/dev
	@.ci/packages
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not alone"
	@$(BIN)/python -m pytest -m alone

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check-native: $(VENV)/dev
	@$(BIN)/python tests/native/check.py
	@$(BIN)/python tests/native/fuzz.py
	@$(BIN)/python tests/native/instructions.py

bench: $(VENV)/dev
	@$(BIN)/python -m bench

long: $(VENV)/dev
	@$(BIN)/python -m bench.soak
	@.ci/packages
	@TOKENSWARM_LONG=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not alone"

bench-peers: $(VENV)/dev
	@$(BIN)/python -m bench.peers

mutants: $(VENV)/dev
	@$(BIN)/python tests/mutants/run.py

lock:
	@$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/pip install --quiet uv
	$(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header pyproject.toml --extra build -o requirements.lock
	$(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header pyproject.toml --extra build --extra dev -c requirements.lock -o requirements-dev.lock
	@rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) results .pytest_cache .mypy_cache .ruff_cache bench/.build
