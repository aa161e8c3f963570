"""Evaluates a run's models on held-out data: the global model, or every client's own."""

import jax
import numpy as np

from devft_jax.evaluation.held_out import Evaluation, HeldOut
from devft_jax.evaluation.judgement import Judgement
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.bank import BankView
from devft_jax.models.adapter import Adapter
from devft_jax.models.base import Base
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.storage.fingerprint import fingerprint
from devft_jax.storage.records import SecondsRecord
from devft_jax.typing import PyTree


class Evaluator:
    """Evaluates an algorithm's models, of a stage or at full depth, and measures the time.

    Args:
      algorithm: builds the models from the server's and the clients' state.
      held_out: evaluates them; None without held-out data.
      programs: measures the time spent on compilation.
    """

    def __init__(self, algorithm: Algorithm, held_out: HeldOut | None, programs: CompiledPrograms):
        self.algorithm, self.held_out, self.programs = algorithm, held_out, programs

    def evaluate(self, base: Base, adapter: Adapter | None, seconds: SecondsRecord) -> Evaluation | None:
        """Held-out loss and exact match of one model.

        Args:
          base: the model.
          adapter: its adapter; None for the base alone.
          seconds: the time spent is added to its `compile` and `evaluate`.

        Returns:
          The evaluation; None without held-out data.
        """
        if self.held_out is None:
            return None
        with self.programs.timed() as elapsed:
            judged = self.held_out(base, adapter)
        seconds.compile += elapsed.compiling
        seconds.evaluate += elapsed.running
        return judged

    def models(self, base: Base, server: PyTree, bank: BankView, seconds: SecondsRecord) -> Judgement | None:
        """Evaluate the global model, or every client's own if the algorithm has no global one.

        Args:
          base: the stage's or the full model.
          server: the algorithm's state for it.
          bank: the clients' rows for it.
          seconds: as in `evaluate`.

        Returns:
          The result; None without held-out data.
        """
        if not self.algorithm.has_global_model:
            return self.own_models(base, server, bank, seconds)
        judged = self.evaluate(base, self.algorithm.global_model(server, bank.of_trained()), seconds)
        return None if judged is None else Judgement(judged.loss, judged.accuracy)

    def untuned(self, base: Base, server: PyTree, bank: BankView, seconds: SecondsRecord) -> Evaluation | None:
        """Evaluate the full base alone.

        It is given an adapter of zeros where the full model will have a plain one, because such an adapter changes no value
        and the program then evaluates the full model, too.

        Args:
          base: the full model.
          server: the algorithm's first state at full depth.
          bank: the clients' rows at full depth.
          seconds: as in `evaluate`.

        Returns:
          The evaluation; None without held-out data.
        """
        if self.held_out is None or not self.algorithm.has_global_model:
            return self.evaluate(base, None, seconds)
        like = self.algorithm.global_model(server, bank.of_trained())
        plain = like.hyper is None and not like.delta
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like) if plain else None
        return self.evaluate(base, zeros, seconds)

    def prepare(self, base: Base, server: PyTree, row: PyTree) -> None:
        """Start to compile the programs that evaluate such models. All trees may hold arrays or shapes.

        Args:
          base: the model.
          server: the algorithm's state for it.
          row: one client's row for it.
        """
        if self.held_out is None:
            return
        algorithm = self.algorithm

        def adapter(server: PyTree, row: PyTree) -> Adapter:
            if algorithm.has_global_model:
                return algorithm.global_model(server, jax.tree.map(lambda leaf: leaf[None], row))
            assert algorithm.personal is not None
            return algorithm.personal(server, row)

        self.held_out.prepare(base, jax.eval_shape(adapter, server, row))

    def own_models(self, base: Base, server: PyTree, bank: BankView, seconds: SecondsRecord) -> Judgement | None:
        """Evaluate every client's own model; the arguments are those of `models`."""
        personal = self.algorithm.personal
        assert personal is not None
        # Equal rows, such as those of clients that have not trained yet, give equal models: each is evaluated once.
        scores: dict[str, Evaluation] = {}
        of_clients: dict[int, Evaluation] = {}
        for positions in (*(np.array([position]) for position in bank.trained), *bank.kinds()):
            row = jax.tree.map(lambda leaf: leaf[0], bank.take(positions[:1]))
            name = fingerprint(*jax.tree.leaves(row))
            if name not in scores:
                judged = self.evaluate(base, personal(server, row), seconds)
                if judged is None:
                    return None
                scores[name] = judged
            of_clients |= dict.fromkeys(positions.tolist(), scores[name])
        return Judgement.over_clients([of_clients[position] for position in sorted(of_clients)])
