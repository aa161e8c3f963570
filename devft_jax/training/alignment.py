"""The alignment of a submodel's gradient with the full model's.

LoRA trains W + s a b from b = 0, where the gradient of a is zero and that of b is s a^T G with G = dL/dW of the frozen
projection. Its rows are random projections of G: with independent entries of a the mean of <s a^T G, s a^T H> over a is
c <G, H>, with the same c for all G and H. The alignment is therefore computed from the full gradients G of the adapted
projections (`devft_jax.training.gradients`), which is the cosine of LoRA's gradients without the noise of a draw of a, and
the same for every rank.

    alignment = <G, P(g)> / (||G|| ||P(g)||),    sums over all adapted projections of all L layers

G [L, in, out] is the full model's gradient, g [G, in, out] the submodel's, and P transfers g to the layers of the full model
as the growth transfers what a submodel learned (`inherit`): layers that get nothing back have a zero gradient. It is the
first-order decrease of the full model's loss by a step of a given length in the submodel's direction, relative to a step of
that length in the full model's own. `alignment_kept` is the same with g only in the first layer of every group.

`devft_jax.probing` measures it before anything is trained, `devft_jax.training.gain` while stages train; there G and g are
the gradients with respect to the weights with what was learned so far.
"""

import numpy as np

from devft_jax.developmental import LayerMap, inherit
from devft_jax.training.gradients import Gradient


def alignment(layer_map: LayerMap, submodel: Gradient, full: Gradient, *, mode: str) -> float:
    """The cosine of the full model's gradient and a submodel's after its transfer; 0 if one of them is zero.

    Args:
      layer_map: the submodel's map.
      submodel: by projection, f32[G, in, out].
      full: by projection, f32[L, in, out].
      mode: how it is transferred, as in `inherit`.
    """
    product = square = 0.0
    for name, gradient in full.items():
        transferred = inherit(layer_map, submodel[name], np.zeros_like(gradient), mode=mode)
        product += layer_products(gradient, transferred).sum()
        square += layer_products(transferred, transferred).sum()
    lengths = np.sqrt(square * sum(layer_products(gradient, gradient).sum() for gradient in full.values()))
    return float(product / lengths) if lengths else 0.0


def layer_products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Inner products of the layers of two leaves, f64[L].

    Args:
      one: f32[L, ...].
      other: f32[L, ...].
    """
    return np.array([np.vdot(left, right) for left, right in zip(one, other, strict=True)], np.float64)


def gradient_shares(full: Gradient) -> np.ndarray:
    """The share of every layer in the squared norm of a gradient, f64[L].

    Args:
      full: by projection, f32[L, in, out].
    """
    squares = np.sum([layer_products(gradient, gradient) for gradient in full.values()], axis=0)
    return np.asarray(squares / max(squares.sum(), np.finfo(np.float64).tiny))
