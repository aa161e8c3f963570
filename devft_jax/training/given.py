"""Objects that take the place of what a configuration names, checked before anything is compiled."""

from devft_jax.developmental import Growth
from devft_jax.errors import InputError


def check_given_growth(growth: object) -> None:
    """Raise `InputError` unless an object is a growth.

    Args:
        growth: what was given to `train`.
    """
    if not isinstance(growth, Growth):
        raise InputError(
            f"growth is {_kind(growth)} and no Growth; give an object of a class that inherits from "
            "devft_jax.developmental.Growth, or name one in the configuration."
        )


def _kind(item: object) -> str:
    return f"the class {item.__qualname__}" if isinstance(item, type) else f"an object of {type(item).__qualname__}"
