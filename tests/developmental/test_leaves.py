import jax.numpy as jnp
import pytest

from devft_jax.developmental.leaves import count_layers


def test_leaves_that_cannot_be_layers_are_named():
    good = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match=r"Leaf \['b'\] has shape \(5, 2\), but axis 0 must hold the 4 layers"):
        count_layers({"a": good, "b": jnp.zeros((5, 2))})
    with pytest.raises(ValueError, match=r"axis 0 must hold the 8 layers of the layer map"):
        count_layers({"a": good}, expected=8)
    with pytest.raises(ValueError, match=r"Leaf \['b'\] has shape \(\)"):
        count_layers({"a": good, "b": 3.0})
    with pytest.raises(ValueError, match=r"Leaf \['b'\] has dtype int32"):
        count_layers({"a": good, "b": jnp.zeros((4, 2), jnp.int32)})
    with pytest.raises(ValueError, match="no leaves"):
        count_layers({})
