# make help lists what there is. Everything runs in .venv, which the first call makes.
SHELL := /bin/bash
.DEFAULT_GOAL := help

INSTALLED := .venv/.installed
DEMO_ARGS ?=
TIER ?= not manual
TEST_ARGS ?=
# The files that hold tests on a wire (tests/test_house.py knows of no other), so that nothing else is imported for them.
REALTIME := tests/test_robots_*.py

# One thread a process: two collapse as soon as another process takes a core.
export OMP_NUM_THREADS ?= 1
# Dozens of processes import torch here: let the first one keep what it compiled.
export PYTHONDONTWRITEBYTECODE :=
# Nothing that runs here downloads anything.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 22

$(INSTALLED): setup.cfg pyproject.toml constraints.txt overrides.txt tools/install.sh
	@tools/install.sh
	@touch $@

.PHONY: install
install: $(INSTALLED) ## make .venv and install everything (every other target does this first)

.PHONY: demo
demo: $(INSTALLED) ## the whole job on an embedded robosuite task; DEMO_ARGS="--name=value ..." changes it
	.venv/bin/accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune_robocasa.py $(DEMO_ARGS)

.PHONY: test
test: $(INSTALLED) ## all tests; TIER=unit for the fast tier
	.venv/bin/python -m pytest -m "($(TIER)) and not realtime" -n 2 --dist loadfile --no-loadscope-reorder $(TEST_ARGS)
	# What waits for answers on a wire has the machine to itself, and is not in the fast tier; pytest ends with 5 where a
	# tier has none of it.
	$(if $(filter unit,$(TIER)),,.venv/bin/python -m pytest -m "($(TIER)) and realtime" $(REALTIME) $(TEST_ARGS) || [ $$? = 5 ])

.PHONY: lint
lint: $(INSTALLED) ## check style and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.PHONY: format
format: $(INSTALLED) ## fix style and format where it can be done by machine
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

.PHONY: doctor
doctor: $(INSTALLED) ## what is installed, and what is missing
	.venv/bin/deas-vla doctor

.PHONY: constraints
constraints: $(INSTALLED) ## renew constraints.txt from setup.cfg (the one target that asks for newer versions)
	echo '# Versions that work together (Python 3.12, Linux), for pip and uv -c. Made by `make constraints`.' > constraints.txt
	.venv/bin/uv pip compile setup.cfg --extra demo --extra dev --extra deepspeed --extra ogbench --extra metaworld --extra robots --override overrides.txt \
		--upgrade --python .venv/bin/python --no-annotate --no-header --quiet >> constraints.txt

.PHONY: clean
clean: ## remove .venv and all caches; outputs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
