# What the seed's users type; everything else is in scripts/.
.PHONY: init-config

AEGIS ?= $(if $(wildcard .venv/bin/aegis),.venv/bin/aegis,aegis)

init-config: ## write a commented configuration to begin with, and say where it is
	$(AEGIS) config init
