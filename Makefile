# What the seed's users type; everything else is in scripts/.
.PHONY: init-config

init-config: ## write a commented configuration to begin with, and say where it is
	aegis config init
