# Everything here runs in one virtual environment outside the checkout; ops/environment.sh makes it.
#   PYTHON=python3.12   the interpreter to build on    ENV_DIR=path   where it lies
#   KEEP_TORCH=1        keep the torch that PYTHON has (ROCm, a cluster's CUDA)
export PYTHON ENV_DIR KEEP_TORCH

PYTEST_ARGS ?=
RUN = "$$(ops/environment.sh python)" -m

.DEFAULT_GOAL := help
.PHONY: help demo verdict env python test test-slow lint lock check-requirements clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' Makefile
	@echo '  Variables: PYTHON=python3.12, KEEP_TORCH=1, ENV_DIR=path, PYTEST_ARGS="-k name"'

demo: env ## Record demonstrations, run every stage, print the tables (about 32 minutes on two cores)
	@$(RUN) world_modality.demo

verdict: env ## Train seeds until the arms are compared: verdict.yaml, then cue.yaml of benchmarks/metaworld (3 hours on two cores)
	@$(RUN) world_modality.experiment benchmarks/metaworld/verdict.yaml --max_parallel 2
	@$(RUN) world_modality.experiment benchmarks/metaworld/cue.yaml --max_parallel 2

env: ## Make the virtual environment (minutes the first time, then nothing)
	@ops/environment.sh create

python: env ## Print the path of its interpreter, for "$(make -s python)" -m world_modality.doctor
	@ops/environment.sh python

test: env ## Run the default tests: no GPU, no network, minutes
	$(RUN) pytest -n auto --dist loadfile -m "not slow and not gpu" $(PYTEST_ARGS)

test-slow: env ## Run the slow tests, and on a GPU the GPU tests
	$(RUN) pytest -m "slow or gpu" $(PYTEST_ARGS)

lint: env ## Check style, formatting, types and who imports whom
	@failed=0; \
	for check in "ruff check" "ruff format --check" mypy "lint-imports --no-logo"; do \
	    echo "== $$check"; PATH="$$(dirname "$$(ops/environment.sh python)"):$$PATH" $$check || failed=1; \
	done; exit $$failed

lock: ## Resolve the requirements into the lock files that make env installs
	@ops/environment.sh lock

check-requirements: env ## Resolve the requirements for every supported Python
	@ops/check_requirements.sh

clean: ## Remove the environment and the caches in the checkout
	@ops/environment.sh remove
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
