# make demo: see it work · make test: run the tests · make lint: format, lint and types · make check: what CI runs · make pythons: a light suite on Python 3.12 and 3.13 · make newest: one on the newest transformers · make soak: 64 clients of the server for 2 minutes · make assets: fetch SmolLM2 and data
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# newest: the newest transformers, which kvpress's metadata does not allow; pinned: that of constraints.txt
STACK ?= $(if $(wildcard $(VENV)/.installed-newest),newest,pinned)
OVERLAY := $(if $(filter newest,$(STACK)),constraints-newest.txt)
STAMP := $(VENV)/.installed$(if $(OVERLAY),-newest)
# half of the tests wait for processes: two at a time; a file stays with one, the longest come first
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
SOURCES := kvx hydra_plugins scripts tests

.PHONY: demo test lint check pythons newest soak guard-study guard-live format assets install clean
.DEFAULT_GOAL := help

help:
	@sed -n '1p' Makefile | tr '·' '\n' | sed 's/^[# ]*//'

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(OVERLAY)
	@$(PYTHON) -c 'import sys; sys.exit("kvx needs Python 3.11, 3.12 or 3.13; set PYTHON=") if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	$(if $(OVERLAY),$(BIN)/python -m pip install --quiet --no-deps -r $(OVERLAY))
	@rm -f $(VENV)/.installed*
	@touch $(STAMP)

demo: install
	$(BIN)/python -m kvx.all experiment=demo

test: install
	$(PYTEST)

lint: install
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

check: lint
	$(PYTEST)

newest: install
	scripts/stack_suite.sh

pythons:
	scripts/light_suite.sh 3.12 3.13

soak: install
	$(BIN)/python scripts/soak_serve.py

format: install
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

assets: install
	$(BIN)/python -m kvx.assets

# what the guard learns from, through to the trained model; resumable (N_PROMPTS per dataset, in 5 bins)
N_PROMPTS ?= 30
guard-study: install assets
	$(BIN)/python -m kvx.run experiment=guard_study dataset.sampling.n_per_bin=$$(( ($(N_PROMPTS) + 4) / 5 ))
	for stage in score analyze report verify train simulate; do $(BIN)/python -m kvx.$$stage experiment=guard_study || exit 1; done

# the live guard beside its controls, through to docs/results/guard_live.md; resumable (N_PROMPTS per dataset)
guard-live: N_PROMPTS = 15
guard-live: PER_BIN = dataset.sampling.n_per_bin=$$(( ($(N_PROMPTS) + 4) / 5 ))
guard-live: install assets
	$(BIN)/python -m kvx.run experiment=guard_live $(PER_BIN)
	$(BIN)/python scripts/guard_live.py controls $(PER_BIN)
	$(BIN)/python -m kvx.run experiment=guard_live experiment_name=guard_live_alone $(PER_BIN) measure=both latency.n_per_bin=1 latency.repeats=1 press=knorm controller=none,balanced
	for stage in score analyze report; do $(BIN)/python -m kvx.$$stage experiment=guard_live || exit 1; done
	$(BIN)/python scripts/bench_live_guard.py --out outputs/runs/guard_live/overhead.json
	$(BIN)/python scripts/guard_live.py page

clean:
	rm -rf $(VENV) outputs multirun .pytest_cache .mypy_cache .ruff_cache build dist
