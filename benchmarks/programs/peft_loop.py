"""PyTorch and PEFT in a loop over the round's clients: OpenFedLLM's pattern without TRL's trainer.

Every client in turn: load the global adapters into the one model, train, copy its adapters; at the end their mean.
"""

import argparse
import copy

import torch
from protocol import Arrays, Program, Work, serve
from torch_client import State, batches_of, from_peft, peft_model, peft_state, set_adapters, to_peft, train, use_threads


class PeftLoop(Program):
    """Sequential clients on one model; batches are tensors before the first round."""

    def __init__(self, work: Work, options: argparse.Namespace):
        use_threads(options.threads)
        self.work = work
        self.model = peft_model(work)
        self.start = to_peft(work.adapters)
        self.batches = [batches_of(work, client) for client in range(work.clients)]

    def round(self) -> None:
        """Train every client from the initial adapters and average."""
        local: list[State] = []
        losses = []
        for batches in self.batches:
            set_adapters(self.model, self.start)
            losses.append(train(self.work, self.model, batches))
            local.append(copy.deepcopy(peft_state(self.model)))
        weight = 1 / len(local)
        zero = torch.zeros(())
        self.adapters = {key: sum((state[key] * weight for state in local), zero) for key in self.start}
        self.loss = sum(losses) / len(losses)

    def result(self) -> tuple[Arrays, float]:
        """The means over clients."""
        return from_peft(self.adapters, self.work.adapters), self.loss


if __name__ == "__main__":
    serve(PeftLoop)
