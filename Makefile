# Two commands: `make demo` makes music, `make test` says whether the code can be trusted.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow coverage docs clean

help:
	@echo "make demo       install, train a small model on Bach, write a chorale with it, and a piece and a continuation"
	@echo "                with the piano model of the package (.mid, .png, .wav)"
	@echo "make test       install, then lint, types and tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make coverage   which lines the tests of make test reach, in processes that they start, too"
	@echo "make docs       build the documentation into site/"
	@echo "make clean      remove the environment and what the demo wrote"

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { rm -rf $(VENV); echo "error: Python 3.11 or newer is needed: make demo PYTHON=python3.11"; exit 2; }
	@$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt -e ".[audio,data,dev,onnx,play]"
	@touch $@

# Training is done once, and an interrupted run goes on where it stopped. One thread: operators as small as these gain
# little from a second one, and lose a hundredfold with it when the machine is busy.
demo/model/metrics.json: | $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python train.py configs/quickstart.yaml --output_dir demo/model \
		$(if $(wildcard demo/model/checkpoint-*/trainer_state.json),--resume_from_checkpoint true)

demo/chorale.mid: demo/model/metrics.json
	OMP_NUM_THREADS=1 $(BIN)/python generate.py --model demo/model --seconds 30 --seed 7 --output $@ --png --wav

# The piano model that comes with the package: from nothing to an end, and on from the opening of a prelude by Bach.
demo/piece.mid: | $(STAMP)
	@mkdir -p demo
	OMP_NUM_THREADS=1 $(BIN)/python generate.py --seconds 30 --end --seed 7 --output $@ --png --wav

demo/continuation.mid: docs/prelude.mid | $(STAMP)
	@mkdir -p demo
	OMP_NUM_THREADS=1 $(BIN)/python generate.py --prompt docs/prelude.mid --seconds 20 --seed 7 --output $@ --png --wav

demo: demo/chorale.mid demo/piece.mid demo/continuation.mid
	@echo "Look at demo/*.png, listen to demo/*.wav; the notes are in demo/*.mid"
	@$(BIN)/pianogen scores demo/model

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n 2 --dist loadfile -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo site .coverage .coverage.*
