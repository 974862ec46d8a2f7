"""The stand-in k3s of a rehearsal: see README.md beside this file for what it is and what it does not do."""
