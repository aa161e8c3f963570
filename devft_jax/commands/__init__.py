"""The `devft` command: one file a command."""
