"""This project, through its `Trainer`, with default settings; `engine.py` says what a round is made of."""

import argparse

from engine import Engine
from protocol import Program, Work, serve

from devft_jax.commands.jax_setup import configure_jax


def make(work: Work, options: argparse.Namespace) -> Program:
    """The engine on a work, with JAX set up as the command line does."""
    configure_jax()
    return Engine(work, options.layers)


if __name__ == "__main__":
    serve(make)
