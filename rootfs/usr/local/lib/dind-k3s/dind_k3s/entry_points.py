"""Importing this puts a small pkg_resources in the place of the real one, before supervisor imports that.

supervisor 4.2 uses one thing of it, to resolve "module:name" (supervisor/options.py, import_spec). The real one is half
of what it costs to start the supervisor, and 6 MB of memory as long as it runs. supervisor 4.3 does without.
"""

from __future__ import annotations

import importlib
import sys
import types


class EntryPoint:
    """What supervisor asks for."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    @classmethod
    def parse(cls, text: str) -> EntryPoint:
        """Of "x=module:name"."""
        module, _, name = text.partition("=")[2].partition(":")
        return cls(module.strip(), name.strip())

    def resolve(self) -> object:
        """The thing itself. Raises ImportError, AttributeError."""
        return getattr(importlib.import_module(self.module), self.name)


_standing_in = types.ModuleType("pkg_resources", __doc__)
_standing_in.EntryPoint = EntryPoint  # type: ignore[attr-defined]
sys.modules.setdefault("pkg_resources", _standing_in)
