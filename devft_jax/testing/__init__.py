"""The laws that every algorithm and every growth must obey, as checks that also run on user-defined ones.

    from devft_jax.testing import check_algorithm, check_growth

    def test_my_algorithm_keeps_the_laws():
        check_algorithm(my_algorithm)                    # a function of a MethodConfig, or an Algorithm

    def test_my_growth_keeps_the_laws():
        check_growth(MyGrowth(), num_layers=12)

A violated law raises a `LawError`, an AssertionError that names the law and the values found. The laws run on a tiny random
model, without data and without a test framework. The package's own methods and growths pass them, and `train` checks the
cheap ones (`quick=True`) on objects that are passed to it.
"""

from devft_jax.testing.algorithms import ALGORITHM_LAWS, check_algorithm
from devft_jax.testing.growths import GROWTH_LAWS, check_growth
from devft_jax.testing.laws import LawError

__all__ = ["ALGORITHM_LAWS", "GROWTH_LAWS", "LawError", "check_algorithm", "check_growth"]
