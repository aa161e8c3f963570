"""A channel: what happens to a client's message on its way to the server, as a record of pure functions.

A client would send up, the change of what it trained (trained minus start), as float32. With a channel a round is

    message, row  = client(up, row, key)              on the client: compress, or bound
    term          = combine(message)                  on the server: what the message stands for, in float32
    mean          = sum_i w_i term_i / sum_i w_i      over the clients, streamed as without a channel
    mean, state   = server(mean, state, key)          on the server, once per round

and the algorithm goes on from the mean. `init(up)` gives the first row, which a client keeps from round to round of a stage,
and the server's first state of a stage. A channel therefore fits every algorithm whose server takes the mean of its messages
(`Algorithm.averages`), and the bytes of a message are the sizes of its leaves, as always.

`chain(first, second)` sends what the first makes through the second. Links change floats alone: positions and other whole
numbers pass through them.

Error feedback (Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019): a client keeps what a message did not carry
and adds it to the next one,

    x_t = up_t + e_t,    message_t = client(x_t),    e_{t+1} = x_t - combine(message_t),    e_0 = 0,

so that the sum of all terms and the last e is the sum of all changes. It converges if the channel is a contraction, that is
||x - combine(client(x))|| <= c ||x|| with c < 1 in some norm. A channel without it should be unbiased, E[combine] = x.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.federated.algorithm import as_float32
from devft_jax.typing import PyTree


def nothing_kept(up: PyTree) -> tuple[PyTree, PyTree]:
    """Neither clients nor server keep anything.

    Args:
      up: shapes of the change that a client would send.
    """
    return {}, {}


def as_floats(message: PyTree) -> PyTree:
    """Every float leaf in float32; other leaves are unchanged.

    Args:
      message: a message.
    """
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if is_float(leaf) else leaf, message)


def is_float(leaf: jax.Array) -> bool:
    """Whether a leaf holds floats.

    Args:
      leaf: an array.
    """
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


@dataclass(frozen=True)
class Channel:
    """A channel's record; every function is pure and traceable, and equal choices give functions that compute the same.

    Attributes:
      name: as it is written after `--channel`.
      init: shapes of a client's change in a stage -> (first row of a client, first state of the server).
      client: (change in float32, row, key) -> (message, row).
      combine: message -> the change in float32 for which it stands.
      server: (mean of the changes, state, key) -> (mean, state, metrics: dict of f32[]), once per round after the mean; None
        if the mean is used as it is.
    """

    name: str
    client: Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]]
    combine: Callable[[PyTree], PyTree] = as_floats
    init: Callable[[PyTree], tuple[PyTree, PyTree]] = nothing_kept
    server: Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree, dict[str, jax.Array]]] | None = None


def compressor(
    name: str, encode: Callable[[PyTree, jax.Array], PyTree], decode: Callable[[PyTree], PyTree] = as_floats
) -> Channel:
    """A channel that keeps nothing and leaves the mean as it is.

    Args:
      name: name of the channel.
      encode: (change, key) -> message.
      decode: message -> the change that it stands for.
    """
    return Channel(name=name, client=lambda up, row, key: (encode(up, key), row), combine=decode)


def message_shapes(channel: Channel, up: PyTree) -> PyTree:
    """Shapes and dtypes of a message.

    Args:
      channel: what it is sent through.
      up: shapes of a client's change in float32.
    """

    def sent(up: PyTree) -> PyTree:
        return channel.client(up, channel.init(up)[0], jax.random.key(0, impl="threefry2x32"))[0]

    return jax.eval_shape(sent, up)


def chain(*links: Channel) -> Channel:
    """Several channels in a row: clients apply them from the first to the last, and messages are read from the last to the
    first. Steps of the server on the mean follow in the order of the links.

    Args:
      links: at least one channel.
    """

    def init(up: PyTree) -> tuple[PyTree, PyTree]:
        rows, states = [], []
        for link in links:
            row, state = link.init(up)
            rows.append(row)
            states.append(state)
            up = message_shapes(link, up)
        return tuple(rows), tuple(states)

    def client(up: PyTree, rows: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
        kept = []
        for index, (link, row) in enumerate(zip(links, rows, strict=True)):
            up, row = link.client(up, row, jax.random.fold_in(key, np.uint32(index)))
            kept.append(row)
        return up, tuple(kept)

    def combine(message: PyTree) -> PyTree:
        for link in reversed(links):
            message = link.combine(message)
        return message

    def server(mean: PyTree, states: PyTree, key: jax.Array) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
        kept, metrics = [], dict[str, jax.Array]()
        for index, (link, state) in enumerate(zip(links, states, strict=True)):
            if link.server is not None:
                mean, state, own = link.server(mean, state, jax.random.fold_in(key, np.uint32(index)))
                metrics |= own
            kept.append(state)
        return mean, tuple(kept), metrics

    acts = any(link.server is not None for link in links)
    return Channel("+".join(link.name for link in links), client, combine, init, server if acts else None)


def with_error_feedback(channel: Channel) -> Channel:
    """The same channel with error feedback: a client's row is the part of its changes that has not been sent, e_t.

    Args:
      channel: a contraction that keeps nothing on the client.
    """

    def init(up: PyTree) -> tuple[PyTree, PyTree]:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), up), channel.init(up)[1]

    def client(up: PyTree, residual: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
        wanted = jax.tree.map(jnp.add, as_float32(up), residual)
        message, _ = channel.client(wanted, channel.init(up)[0], key)
        return message, jax.tree.map(jnp.subtract, wanted, channel.combine(message))

    return Channel(channel.name, client, channel.combine, init, channel.server)
