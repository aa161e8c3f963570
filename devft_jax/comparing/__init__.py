"""Comparisons of several methods over several seeds on the same clients: runs, tables, a verdict and a page."""
