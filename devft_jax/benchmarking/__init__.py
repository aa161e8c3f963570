"""Trained models and others evaluated on benchmarks: several at once, with standard errors and paired differences."""
