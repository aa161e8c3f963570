"""The `devft` command line: one file per command."""
