# make serve is all that a newcomer needs; make help lists the rest.
#
#   ARGS              what follows `shoal serve`, or `pytest`: make serve ARGS="MODEL --port 9000"
#   PYTHON            the interpreter to make .venv with
#   TORCH_INDEX_URL   the package index that torch is taken from

BIN := .venv/bin
DESCRIBED := pyproject.toml setup.py constraints.txt deploy/setup.sh \
    $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h kernels/cpu/*.inc kernels/cpu/build.py)

export PYTHON TORCH_INDEX_URL

.PHONY: serve test check format clients bench clean help
.DEFAULT_GOAL := help

serve: .venv/.serve  ## install on the first run, then serve the bundled model, or ARGS
	@exec $(BIN)/shoal serve $(ARGS)

test: .venv/.test  ## run every test, or those that ARGS names
	@$(if $(ARGS),exec $(BIN)/python -m pytest $(ARGS),exec tests/lanes.sh $(BIN)/python)

check: .venv/.test  ## lint, formatting, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@mkdir -p .venv/typing && ln -sfn ../.. .venv/typing/shoal
	@cd .venv/typing && ../bin/mypy --config-file ../../pyproject.toml -p shoal

format: .venv/.test  ## put imports and layout right
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

clients: .venv/.test  ## make the clients that shoal is tried with, or those that ARGS names
	@exec deploy/clients.sh $(ARGS)

bench: .venv/.serve  ## measure a running server
	@exec $(BIN)/shoal bench serve $(ARGS)

clean:  ## remove .venv, caches and build outputs
	rm -rf .venv build dist shoal.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f kernels/cpu/native.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1@/p' Makefile | awk -F@ '{ printf "%-16s%s\n", $$1, $$2 }'

# Each stamp is the time of the last installation; it is made anew when what it was made from changes.
.venv/.serve: $(DESCRIBED)
	@deploy/setup.sh
	@touch $@

.venv/.test: $(DESCRIBED)
	@deploy/setup.sh test
	@touch .venv/.serve $@
