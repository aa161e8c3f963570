"""Estimates of what a run would cost, from shapes alone."""
