"""A run that begins with an existing adapter in place of LoRA's initialisation.

The adapter's update of a weight is s_0 a_0 b_0 of rank r_0. A run of rank r and scale s = alpha / r begins with the same
update, exactly up to float32's rounding:

    a = [a_0, fresh],    b = [(s_0 / s) b_0; 0],    r >= r_0,

where the fresh columns are those of the run's own initialisation, because a direction of two zero factors could never learn.
For the same reason a direction of a_0 and b_0 that is zero in both, such as the padding of layers of smaller rank, gets the
fresh column. Projections that the adapter does not adapt begin as in any run. A method that keeps a dense correction of the
weights instead of factors takes the update itself, s_0 a_0 b_0, of any rank.

How an algorithm begins is declared in its record, `start_from`: by default the server's state is an adapter or has one as
`adapter`, whose factors are replaced. `devft_jax.federated.beginning` verifies that the first model is then the base with
the given adapter. Like the base, the adapter is known to all clients before the run and is not counted as a message.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from devft_jax.errors import InputError
from devft_jax.models.adapter import Adapter, LoraFactors, layer_scales
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.typing import PyTree


class NoAdapterError(Exception):
    """An algorithm's state has no place for an adapter."""


@dataclass(frozen=True)
class WarmStart:
    """The adapter with which a run begins.

    Attributes:
      adapter: factors [L, in, r_0], [L, r_0, out] of every projection, with their scale; without dense corrections.
      what: what it is, in words, to begin a sentence with.
    """

    adapter: Adapter
    what: str

    @property
    def rank(self) -> int:
        """r_0, the largest rank of a projection."""
        return max(factors.a.shape[-1] for factors in self.adapter.lora.values())

    def factors(self, fresh: dict[str, LoraFactors], scale: jax.Array | float) -> dict[str, LoraFactors]:
        """The same update in the factors of a run.

        Args:
          fresh: the run's own initialisation, [L, in, r], [L, r, out] of every projection that it adapts.
          scale: s, the run's scale.

        Raises:
          InputError: the run has a smaller rank or fewer targets, or the adapter belongs to another model.
        """
        shapes = {name: (*each.a.shape[:2], each.b.shape[-1]) for name, each in fresh.items()}
        self._check(shapes)
        rank = min(each.a.shape[-1] for each in fresh.values())
        if self.rank > rank:
            raise InputError(
                f"rank {rank} is below rank {self.rank} of {self.what}; give --rank {self.rank}, or --truncate-adapter to "
                f"begin with the nearest adapter of rank {rank}."
            )
        scales = layer_scales(self.adapter, next(iter(shapes.values()))[0])

        def one(name: str, new: LoraFactors) -> LoraFactors:
            if name not in self.adapter.lora:
                return LoraFactors(a=new.a, b=jnp.zeros_like(new.b))
            old = self.adapter.lora[name]
            more = new.a.shape[-1] - old.a.shape[-1]
            a = jnp.pad(old.a, ((0, 0), (0, 0), (0, more)))
            b = jnp.pad(old.b * (scales[name] / scale)[:, None, None], ((0, 0), (0, more), (0, 0)))
            unused = ~(jnp.any(a != 0, axis=1) | jnp.any(b != 0, axis=2))
            return LoraFactors(a=jnp.where(unused[:, None], new.a, a), b=b)

        return {name: one(name, new) for name, new in fresh.items()}

    def products(self, corrections: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The update itself, s_0 a_0 b_0 f32[L, in, out], for methods that correct the weights.

        Args:
          corrections: the run's own first corrections, zero, [L, in, out] of every projection that it adapts.

        Raises:
          InputError: the run has fewer targets, or the adapter belongs to another model.
        """
        self._check({name: each.shape for name, each in corrections.items()})
        scales = layer_scales(self.adapter, self.adapter.depth(otherwise=0))

        def one(name: str, zero: jax.Array) -> jax.Array:
            if name not in self.adapter.lora:
                return zero
            old = self.adapter.lora[name]
            scaled = old.a * scales[name][:, None, None]
            return zero + jnp.einsum("lir,lro->lio", scaled, old.b, precision="highest")

        return {name: one(name, zero) for name, zero in corrections.items()}

    def _check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise `InputError` unless a run with projections of these shapes (L, in, out) can begin with the adapter."""
        missing = [name for name in self.adapter.lora if name not in shapes]
        if missing:
            every = sorted({*shapes, *self.adapter.lora}, key=PROJECTIONS.index)
            raise InputError(
                f"targets {','.join(shapes)} lacks {','.join(missing)}, which {self.what} adapts; give --targets "
                f"{','.join(every)}."
            )
        for name, old in self.adapter.lora.items():
            found = (*old.a.shape[:2], old.b.shape[-1])
            if found != shapes[name]:
                raise InputError(
                    f"{self.what} adapts {found[0]} layers with {name} [{found[1]} x {found[2]}] but the model has "
                    f"{shapes[name][0]} with [{shapes[name][1]} x {shapes[name][2]}]; give the model that it was made for."
                )


def with_factors(server: PyTree, start: WarmStart) -> PyTree:
    """The state in which an adapter's factors are those of the warm start: the state itself is one, or has one as `adapter`.

    Args:
      server: an algorithm's first state at full depth.
      start: the warm start.

    Raises:
      NoAdapterError: the state has no adapter with factors.
      InputError: as `WarmStart.factors`.
    """
    if isinstance(server, Adapter) and server.lora:
        # A run's own adapter has one rank and alpha for all layers.
        assert not isinstance(server.scale, dict)
        return server.replace(lora=start.factors(server.lora, server.scale))
    adapter = getattr(server, "adapter", None)
    if isinstance(adapter, Adapter) and adapter.lora:
        return server.replace(adapter=with_factors(adapter, start))
    raise NoAdapterError
