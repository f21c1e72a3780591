# Two commands from a fresh clone with Python 3.11: `make demo` and `make test`. Each makes .venv and installs by itself.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint check slow clean

demo: $(VENV)/demo.done
	$(BIN)/glocal demo --out demo

test: $(VENV)/test.done
	$(MAKE) --no-print-directory lint check

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: $(VENV)/test.done
	$(BIN)/python -m pytest -n 2 -q

slow: $(VENV)/test.done
	$(BIN)/python -m pytest -n 2 -q -m slow

# .ci/constraints.txt holds the set that was tried together; only there are versions pinned that must agree.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip

$(VENV)/demo.done: pyproject.toml .ci/constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c .ci/constraints.txt -e '.[medical,colorization,deblurring]'
	touch $@

$(VENV)/test.done: pyproject.toml .ci/constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c .ci/constraints.txt -e '.[test]'
	touch $@ $(VENV)/demo.done

clean:
	rm -rf $(VENV) demo
