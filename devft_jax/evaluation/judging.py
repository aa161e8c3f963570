"""What held-out data says of a run's models: of the one that stands for all clients, or of every client's own."""

import time

import jax
import numpy as np

from devft_jax.evaluation import Evaluation, HeldOut, Judgement
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.bank import BankView
from devft_jax.models.adapter import Adapter
from devft_jax.models.base import Base
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.storage.fingerprint import fingerprint
from devft_jax.typing import PyTree


class Judge:
    """Judges an algorithm's models, of a stage or at full depth, and counts the time that it takes.

    Args:
      algorithm: whose models. held_out: scores them; None without held-out data. programs: which count what is compiled.
    """

    def __init__(self, algorithm: Algorithm, held_out: HeldOut | None, programs: CompiledPrograms):
        self.algorithm, self.held_out, self.programs = algorithm, held_out, programs

    def evaluate(self, base: Base, adapter: Adapter | None, seconds: dict[str, float]) -> Evaluation | None:
        """Held-out loss and exact match; None without held-out data. The time is added to `seconds`."""
        if self.held_out is None:
            return None
        began, compiled = time.perf_counter(), self.programs.seconds
        judged = self.held_out(base, adapter)
        compile_seconds = self.programs.seconds - compiled
        seconds["compile"] += compile_seconds
        seconds["evaluate"] += time.perf_counter() - began - compile_seconds
        return judged

    def models(self, base: Base, server: PyTree, bank: BankView, seconds: dict[str, float]) -> Judgement | None:
        """The one model that stands for all clients, or every client's own where there is none."""
        if not self.algorithm.has_global_model:
            return self.own_models(base, server, bank, seconds)
        judged = self.evaluate(base, self.algorithm.global_model(server, bank.of_trained()), seconds)
        return None if judged is None else Judgement(judged.loss, judged.accuracy)

    def prepare(self, base: Base, server: PyTree, row: PyTree) -> None:
        """Have what judges such models compiled ahead; all arguments, `row` of one client, are arrays or shapes."""
        if self.held_out is None:
            return
        algorithm = self.algorithm

        def adapter(server: PyTree, row: PyTree) -> Adapter:
            if algorithm.has_global_model:
                return algorithm.global_model(server, jax.tree.map(lambda leaf: leaf[None], row))
            assert algorithm.personal is not None
            return algorithm.personal(server, row)

        self.held_out.prepare(base, jax.eval_shape(adapter, server, row))

    def own_models(self, base: Base, server: PyTree, bank: BankView, seconds: dict[str, float]) -> Judgement | None:
        """Every client's own model."""
        personal = self.algorithm.personal
        assert personal is not None
        # Rows that are equal, as those of clients that have not trained yet, make one model; it is scored once.
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
