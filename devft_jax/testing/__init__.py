"""The laws that every algorithm and every growth keeps, for those of your own too.

    from devft_jax.testing import check_algorithm, check_growth

    def test_my_algorithm_keeps_the_laws():
        check_algorithm(my_algorithm)                    # a function of a MethodConfig, or an Algorithm

    def test_my_growth_keeps_the_laws():
        check_growth(MyGrowth(), num_layers=12)

A broken law raises a `LawError`, an AssertionError that names the law and what was found. The laws run on a tiny random
model, without data and without any test framework. The package's own methods and growths pass them, and `train` asserts
those of them that cost nothing (`quick=True`) of objects that it is given.
"""

from devft_jax.testing.algorithms import ALGORITHM_LAWS, check_algorithm
from devft_jax.testing.growths import GROWTH_LAWS, check_growth
from devft_jax.testing.laws import LawError

__all__ = ["ALGORITHM_LAWS", "GROWTH_LAWS", "LawError", "check_algorithm", "check_growth"]
