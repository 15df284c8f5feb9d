# Each target does all of its own set-up; python3 with venv is all a machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JS := tests/clients/js
NATIVE := $(wildcard attestkit/_native/*.c attestkit/_native/*.h attestkit/_native/*.inc)
C_FILES := $(filter-out attestkit/_native/_lib.c,$(NATIVE))
OTHER_C := $(wildcard attestkit/emulator/nvml/*.[ch] tests/emulator/nvml/*.c benchmarks/attester/*.c fuzz/core/*.[ch] \
	tests/rigs/kernel/shim/*.[ch])
CORE_TESTS := tests/native tests/test_quote.py tests/test_columns.py \
	tests/event_log/test_agent_json.py tests/event_log/test_event_log.py \
	tests/event_log/test_runtime_events.py tests/event_log/test_tcg.py \
	tests/event_log/test_wire_events.py tests/formats/test_cbor.py \
	tests/attestation/wire/test_v1_cbor.py
ARGS ?=
# The tests start many programs, each of which would compile all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

# Where each command that has nothing to do with the project's own environment is.
TOOLS := .tools/bin
DOCS := .docs/bin
DIST := .tools/dist
LOCK := $(TOOLS)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	--no-annotate --no-header --upgrade

.PHONY: serve test lint bench growth sanitize compilers aarch64 valgrind kernels schemathesis fuzz differential flake soak rotation kills chaos fleet \
	docs lock audit promises judges devmode interleave dist matrix clean help

help:
	@echo "make serve   start the server (options in ARGS='...')"
	@echo "make test    run the tests; ARGS='-m slow' those that take long"
	@echo "make lint    run every check that is not a test"
	@echo "make bench   run the benchmarks, each beside a named peer; the tables are in docs/benchmarks/"
	@echo "make docs    build the documentation's site; site/index.html, or ARGS=serve to look at it"
	@echo "make growth  time and memory against the size of the input; docs/benchmarks/growth.md"
	@echo "make sanitize  run the tests of the C core under ASan and UBSan"
	@echo "make compilers  compile the C core with every compiler that is here, without a warning"
	@echo "make aarch64  run the tests of the C core on an emulated aarch64"
	@echo "make valgrind  run the C core over all samples under memcheck and clang's sanitizers"
	@echo "make kernels  run the tests of the drivers on two kernels in virtual machines"
	@echo "make schemathesis  send 200 random requests to each operation of the OpenAPI document"
	@echo "make fuzz    run every fuzzer, for SECONDS=n or for hours; the record is docs/records/fuzz.json"
	@echo "make differential  compare the DCAP engine with dcap-qvl; the record is docs/records/dcap.json"
	@echo "make soak    load the server for an hour; the record is docs/records/soak.json"
	@echo "make rotation  let two services renew their keys and prove each other; docs/records/rotation.json"
	@echo "make kills   kill boots and servers at random moments; the record is docs/records/kills.json"
	@echo "make chaos   let disk, clock, device and network break around the server; docs/records/chaos.json"
	@echo "make promises  run the tests that hold the promises of docs/security/threat-model.md"
	@echo "make judges  run every independent program over what attestkit makes; docs/records/judges.json"
	@echo "make devmode  run every test in Python's development mode"
	@echo "make interleave  explore schedules of threads and sequences of clients, for longer"
	@echo "make matrix  run with other Pythons, dependencies, clients and frameworks; docs/records/matrix.json"
	@echo "make lock    choose the versions that the tests run with anew: requirements/*.lock"
	@echo "make audit   ask for known vulnerabilities of what is locked"
	@echo "make dist    make sources and wheels of this commit: dist/, with their SHA-256"
	@echo "make fleet   verify 10,000 pieces of evidence on a cluster that loses a worker; docs/records/fleet.json"
	@echo "make flake   run the tests 50 times; the record is docs/records/flake.json"

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.serve: $(VENV)/.made pyproject.toml build_cffi.py $(C_FILES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[serve]'
	touch $@

# Exactly what is locked, build tools too, and each file with a hash that the lock names.
$(VENV)/.dev: $(VENV)/.made requirements/ci.lock pyproject.toml build_cffi.py $(C_FILES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements/ci.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --editable .
	touch $@ $(VENV)/.serve

# The official JavaScript clients; without npm their tests skip and say so.
$(JS)/node_modules/.made: $(JS)/package.json $(JS)/package-lock.json
	if command -v npm >/dev/null; then \
	  npm ci --prefix $(JS) --no-audit --no-fund --loglevel=error && touch $@; \
	fi

$(TOOLS)/.made: requirements/tools.lock
	$(PYTHON) -m venv .tools
	$(TOOLS)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements/tools.lock
	touch $@

$(DOCS)/.made: requirements/docs.lock
	$(PYTHON) -m venv .docs
	$(DOCS)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements/docs.lock
	touch $@

$(DIST)/.made: requirements/dist.lock
	$(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements/dist.lock
	touch $@

serve: $(VENV)/.serve
	@exec $(BIN)/python -m attestkit.serve $(ARGS)

test: $(VENV)/.dev $(JS)/node_modules/.made
	$(BIN)/python -m pytest -n auto -p no:benchmark -m 'not slow' $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(C_FILES) $(OTHER_C)
	$(BIN)/mypy & mypy=$$!; $(BIN)/pyright && $(BIN)/lint-imports; others=$$?; wait $$mypy && exit $$others
	$(BIN)/codespell attestkit tests benchmarks fuzz deploy docs README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md Makefile

# All of it writes docs/benchmarks/; a part (ARGS='-k quote') prints its verdicts. STRICT=1 fails on
# a missed target. ARGS=--benchmark-disable is the quick form: everything works, nothing is timed.
RESULTS := .bench/results.json
bench: $(VENV)/.dev
	@rm -f $(RESULTS)
	$(BIN)/python -m pytest benchmarks --results $(RESULTS) -q \
	  --benchmark-columns=min,median,iqr,rounds,iterations $(ARGS)
	@[ ! -e $(RESULTS) ] || $(BIN)/python -m benchmarks.compare $(RESULTS) $(if $(STRICT),--strict)

# Ten minutes more: hostile inputs of each shape, then time and memory of inputs from 1 to a million.
growth: $(VENV)/.dev
	$(BIN)/python -m benchmarks.growth_hostile $(if $(STRICT),--strict)
	$(BIN)/python -m benchmarks.growth $(if $(STRICT),--strict) $(ARGS)

# Every warning is an error (with --quiet none would be). `make docs ARGS=serve` shows the pages as they are written.
docs: $(DOCS)/.made
	NO_MKDOCS_2_WARNING=1 $(DOCS)/python -m mkdocs $(or $(ARGS),build)

SANITIZED = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc $(BIN)/python
# The C core again, with ASan and UBSan, over every test that feeds it; then the plain build back.
sanitize: $(VENV)/.dev
	ATTESTKIT_SANITIZE=1 $(BIN)/python build_cffi.py
	$(SANITIZED) -c 'from attestkit import _native as n; assert n.CORE == "compiled", n.CORE_REASON' && \
	$(SANITIZED) -m pytest -n auto -q -p no:benchmark $(CORE_TESTS) $(ARGS); \
	status=$$?; $(BIN)/python build_cffi.py && exit $$status

compilers: $(VENV)/.dev
	ATTESTKIT_EXAMPLES=100 $(BIN)/python -m pytest -p no:benchmark tests/packaging/test_compilers.py $(ARGS)

aarch64: $(VENV)/.dev
	ATTESTKIT_EXAMPLES=40 $(BIN)/python -m pytest -p no:benchmark tests/rigs/test_aarch64.py $(ARGS)

valgrind: $(VENV)/.dev
	ATTESTKIT_EVERY_CUT=1 $(BIN)/python -m pytest -p no:benchmark tests/fuzz/test_memcheck.py $(ARGS)

kernels: $(VENV)/.dev
	ATTESTKIT_KERNELS=all $(BIN)/python -m pytest -p no:benchmark tests/rigs/kernel $(ARGS)

schemathesis: $(VENV)/.dev
	ATTESTKIT_EXAMPLES=200 $(BIN)/python -m pytest -p no:benchmark tests/serve/api_docs/test_schemathesis.py $(ARGS)

# No place is written down that packages come from: the lock says what they are.
lock: $(TOOLS)/.made
	$(LOCK) pyproject.toml --extra dev --output-file requirements/ci.lock
	$(LOCK) requirements/tools.in --output-file requirements/tools.lock
	$(LOCK) requirements/docs.in --constraint requirements/ci.lock --output-file requirements/docs.lock
	$(LOCK) requirements/build.in --constraint requirements/ci.lock --output-file requirements/build.lock
	$(LOCK) requirements/dist.in --constraint requirements/ci.lock --output-file requirements/dist.lock
	$(LOCK) pyproject.toml --extra serve --constraint requirements/ci.lock \
	  --output-file requirements/image.lock
	if command -v npm >/dev/null; then \
	  npm install --prefix $(JS) --package-lock-only --no-audit --no-fund --loglevel=error; \
	fi

# "Error 1" is a vulnerability, "Error 3" that the index did not tell: then nothing is known.
audit: $(TOOLS)/.made
	$(TOOLS)/python -m tests.supply_chain.audit $(ARGS)

# Hours, which may be done in parts: ARGS='--stop-after 3600'. SECONDS=60 is the form that writes no
# record, and leaves out engines that are not installed.
fuzz: $(VENV)/.dev
	$(BIN)/python -m fuzz.campaign $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

# An hour; ARGS='--seconds 60' is the form that writes no record, `--cases N --seed S --kind K` others.
differential: $(VENV)/.dev
	$(BIN)/python -m tests.verifier.dcap.differential $(ARGS)

# What is committed, and nothing else; which compiler and Python is in docs/install.md.
dist: $(DIST)/.made
	@$(DIST)/bin/python build_dist.py $(ARGS)

flake: $(VENV)/.dev $(JS)/node_modules/.made
	$(BIN)/python -m tests.long_runs.flake $(ARGS)

# An hour; `make soak ARGS='--seconds 60'` is the form that writes no record.
soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak $(ARGS)

# Half an hour; `make rotation ARGS='--seconds 60'` is the form that writes no record.
rotation: $(VENV)/.dev
	$(BIN)/python -m tests.soak.rotation $(ARGS)

# 1,000 kills; `make kills ARGS='--seconds 60'` and `--runs 50` are forms that write no record.
kills: $(VENV)/.dev
	$(BIN)/python -m tests.long_runs.kills $(ARGS)

# Some minutes; `make fleet ARGS='--pieces 1000'` is the form that writes no record.
fleet: $(VENV)/.dev
	$(BIN)/python -m tests.long_runs.fleet $(ARGS)

# The tests that hold the promises of docs/security/threat-model.md; one that skips is a failure.
promises: $(VENV)/.dev $(JS)/node_modules/.made
	$(BIN)/python -m tests.docs.promises $(ARGS)

judges: $(VENV)/.dev $(JS)/node_modules/.made
	$(BIN)/python -m tests.judges $(ARGS)

# Every test in Python's development mode, its own and all programs', with warnings as errors.
devmode: $(VENV)/.dev $(JS)/node_modules/.made
	PYTHONDEVMODE=1 PYTHONWARNINGS=error $(BIN)/python -X dev -W error -m pytest -n auto \
	  -p no:benchmark $(ARGS)

# Some minutes more of what threads and clients do at once than `make test ARGS="-m slow"` takes.
interleave: $(VENV)/.dev
	ATTESTKIT_SCHEDULES=20000 ATTESTKIT_EXAMPLES=500 $(BIN)/python -m pytest -s -p no:benchmark -m slow \
	  tests/concurrency -k 'not killed' $(ARGS)

# Some twenty minutes; ARGS='--session oldest-3.10' runs a part anew and adds it to the record if it
# succeeds, `--list` names them.
MATRIX := docs/records/matrix.json
matrix: $(VENV)/.dev
	@rm -f .matrix/part.json
	$(BIN)/python -m nox --report $(if $(ARGS),.matrix/part.json $(ARGS),$(MATRIX))
	@[ ! -e .matrix/part.json ] || $(BIN)/python -m tests.matrix.record .matrix/part.json

# Ten minutes; `make chaos ARGS='--short disk'` is a form that takes seconds and writes no record.
chaos: $(VENV)/.dev
	$(BIN)/python -m tests.chaos $(ARGS)

clean:
	rm -rf $(VENV) .tools .docs site build dist attestkit/_native/_lib.c attestkit/_native/_lib.*so attestkit/_native/*.o
	rm -rf $(JS)/node_modules .attestkit .bench .fuzz .matrix .nox
