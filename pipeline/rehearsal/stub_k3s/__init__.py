"""The stub k3s of a rehearsal: README.md lists what it does and what it does not do."""
