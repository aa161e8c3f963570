"""A page for every public module of a package, below docs/api, written anew by each build and not kept in the repository."""

import importlib
import inspect
import pkgutil
import shutil
from pathlib import Path
from types import ModuleType

from sphinx.application import Sphinx


def submodules(package: ModuleType) -> list[str]:
    """The public modules directly below a package, by name."""
    return [found.name for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_")]


def names(package: ModuleType) -> list[str]:
    """One line for every name that a package offers: where it is defined."""
    lines = []
    for name in getattr(package, "__all__", ()):
        value = getattr(package, name)
        home = getattr(value, "__module__", "")
        if (inspect.isclass(value) or inspect.isfunction(value)) and home.startswith(package.__name__.split(".")[0]):
            lines.append(f"* :py:obj:`{name} <{home}.{value.__qualname__}>`")
    return lines


def write(name: str, folder: Path) -> None:
    """Write the page of a module and of those below it."""
    module = importlib.import_module(name)
    lines = [name, "=" * len(name), "", f".. automodule:: {name}", ""]
    if hasattr(module, "__path__"):
        offered = names(module)
        if offered:
            lines += ["It offers:", "", *offered, ""]
        below = submodules(module)
        lines += [".. toctree::", "   :maxdepth: 1", "", *(f"   {name}.{child}" for child in below), ""]
        for child in below:
            write(f"{name}.{child}", folder)
    (folder / f"{name}.rst").write_text("\n".join(lines), encoding="utf-8")


def write_all(app: Sphinx) -> None:
    """Write all pages, and remove those of modules that no longer exist."""
    folder = Path(app.srcdir) / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write(app.config.api_package, folder)


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages of `api_package`, which lies in `api_folder`, before the build reads them."""
    app.add_config_value("api_package", "", "env", str)
    app.add_config_value("api_folder", ".", "env", str)
    app.connect("builder-inited", write_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
