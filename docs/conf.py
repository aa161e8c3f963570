"""The site: guides and API pages, by `make docs`, where every warning is an error.

Sphinx with MyST's Markdown and the furo theme. The site needs no network: formulas are MathML, there are no web fonts and no
scripts of other servers, and no other project's index is read while it is built.
"""

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent)]

project = "devft_jax"
author = "The devft_jax authors"
copyright = f"2026, {author}"
version = release = metadata.version("devft-jax")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "api_pages",
    "docstring_check",
    "mathml",
    "plain_docstrings",
    "source_links",
]
exclude_patterns = ["_build", "README.md"]
root_doc = "index"
api_package = "devft_jax"
api_folder = str(HERE.parent)

html_theme = "furo"
html_title = f"devft_jax {release}"
html_math_renderer = "mathml"
# Formulas and code that docstrings set off; pages name the language of each block.
highlight_language = "text"
html_copy_source = False
smartquotes = False
templates_path: list[str] = []

# GitHub's Markdown: formulas between dollars and in fences, anchors of headings.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "ignore-module-all": True, "show-inheritance": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
