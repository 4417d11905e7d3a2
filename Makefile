# Development of ComfyUI-DiffusionPath. Needs Python 3.11.4+ with pip; `make setup` does the rest.
#   VENV          the environment to use or create (default: .venv)
#   COMFYUI_PATH  an installed ComfyUI to use instead of the one that `make setup` fetches

PYTHON ?= python3
VENV ?= .venv
export VENV COMFYUI_PATH

# -P: the pack's own folder, with its `nodes`, stays off sys.path.
RUN := $(VENV)/bin/python -P -m
PACK := diffusion_path

.PHONY: help setup demo test lint format fuzz soak compat bench bench-model bench-gpu serve workflows \
	locales browser

help:  ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

setup:  ## virtual environment and ComfyUI (a second call does nothing)
	@$(PYTHON) tools/setup.py

demo: setup  ## every example workflow in a real ComfyUI; pictures in demo-output/
	@$(RUN) $(PACK).tools.demo

test: setup  ## all tests
	@$(RUN) pytest

lint: setup  ## style, types, imports, and the registry's checks
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(VENV)/bin/lint-imports
	@$(RUN) $(PACK).tools.release validate

format: setup  ## let ruff lay out the code and fix what it can
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

fuzz: setup  ## random workflows: N executions from SEED, or the failure kept in REPLAY
	@$(RUN) $(PACK).tools.fuzz $(if $(REPLAY),--replay $(REPLAY),$(or $(N),500) $(or $(SEED),0))

soak: setup  ## N edits on one server, from two clients, with interruptions; memory and time
	@$(RUN) $(PACK).tools.soak $(or $(N),1000)

compat: setup  ## the contract with other versions of ComfyUI, Python and PyTorch
	@$(RUN) $(PACK).tools.compat

bench: setup  ## every technique against the ground truth
	@$(RUN) $(PACK).benchmarks

bench-model: setup  ## how good the demo model is
	@$(RUN) $(PACK).benchmarks.demo_model

bench-gpu: setup  ## time and memory on a graphics card, at true sizes (more options: ARGS=...)
	@$(RUN) $(PACK).benchmarks.gpu $(ARGS)

serve: setup  ## ComfyUI with this pack at http://localhost:8188 (more options: ARGS=...)
	@$(RUN) $(PACK).tools.serve $(ARGS)

workflows: setup browser  ## the example workflows' layout, API twins (by ComfyUI's front end) and thumbnails
	@$(RUN) $(PACK).tools.layout
	@$(RUN) $(PACK).tools.workflows
	@$(RUN) $(PACK).tools.thumbnails

locales: setup  ## what a language lacks of the nodes' strings: make locales LOCALE=ja
	@$(RUN) $(PACK).tools.locales $(LOCALE)

browser:  ## Chromium and its driver, for the browser tests
	@tests/browser/install
