PYTHON := .venv/bin/python

.PHONY: protos
protos: ## Generate the Python stubs of protos/
	$(PYTHON) -m tools.protos
