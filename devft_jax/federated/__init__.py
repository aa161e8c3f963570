"""Federated training: the algorithm record, one client, a cohort, and who takes part."""
