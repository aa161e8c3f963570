"""Links to source files, right in a repository browser, lead to the API page of the same module on the site.

``[`fuse`](../devft_jax/developmental/maps.py)`` becomes a reference to `devft_jax.developmental.maps.fuse`. Links
to other files of the repository offer the file itself; a link to nothing is MyST's warning.
"""

import os
import posixpath
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform


class SourceLinks(SphinxTransform):
    """Turns a link to a module's file into a reference to the module, or to the name of it that is the link's text."""

    # Before MyST's and Sphinx's own treatment of links to files.
    default_priority = 5

    def apply(self, **options: object) -> None:
        """Replace the links of one page."""
        folder = Path(self.env.srcdir, self.env.docname).parent
        # MyST takes every Markdown file for a page of the site, also one beside the site.
        for page in list(self.document.findall(addnodes.pending_xref)):
            file = Path(f"{page['reftarget']}.md")
            if page.get("refdomain") == "doc" and file.is_absolute() and file.is_file():
                page.replace_self(
                    addnodes.download_reference("", "", *page.children, reftarget=os.path.relpath(file, folder))
                )
        for link in list(self.document.findall(addnodes.download_reference)):
            path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(self.env.docname), link["reftarget"]))
            if not (path.startswith(f"{self.config.api_package}/") and path.endswith(".py")):
                continue
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            words = link.astext()
            name = f"{module}.{words}" if words.isidentifier() else module
            reference = addnodes.pending_xref(
                "", *link.children, refdomain="py", reftype="obj", reftarget=name, refexplicit=True, refwarn=True
            )
            reference["refdoc"] = self.env.docname
            reference["source_module"] = module
            link.replace_self(reference)


def module_of(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, words: nodes.TextElement
) -> nodes.Node | None:
    """The module's page for a name of it that has no entry of its own."""
    module = node.get("source_module")
    if module is None or node["reftarget"] == module:
        return None
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, "mod", module, node, words)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the transform."""
    app.add_transform(SourceLinks)
    app.connect("missing-reference", module_of)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
