"""Public names of a package whose modules are imported when a name is first used.

So options and help can be read without JAX, and one subpackage imported without the others:

    __getattr__, __dir__ = lazy_names(__name__, __all__, {"maps": ("LayerMap", "fuse")})
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, public: Sequence[str], homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
      package: its dotted name.
      public: its public names.
      homes: for each of its modules, by dotted name within it, the names that are found there.
    """
    module_of = {name: f"{package}.{module}" for module, names in homes.items() for name in names}

    def found(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(module_of[name]), name)

    def names() -> list[str]:
        own = (name for name in vars(sys.modules[package]) if name.startswith("__"))
        return sorted({*public, *own})

    return found, names
