"""`python -m devft_jax` is the `devft` command."""

from devft_jax.cli import main

if __name__ == "__main__":
    main()
