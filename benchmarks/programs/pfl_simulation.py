"""pfl-research: its federated averaging over its simulated backend, one process, the model under PEFT.

pfl evaluates every client before and after training in iterations that `evaluation_frequency` divides, the first among them;
the rounds continue one algorithm, so only the first, untimed one does so.
"""

import argparse
from collections.abc import Iterator

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from protocol import Arrays, Program, Work, serve
from torch_client import (
    Batch,
    adapters_of,
    batches_of,
    loss_of,
    optimizer_of,
    peft_model,
    set_adapters,
    to_peft,
    use_threads,
)

NEVER = 2**31


class LossModule(torch.nn.Module):
    """The model with the two methods that pfl calls; `losses` are the training losses since the list was last cleared."""

    def __init__(self, work: Work):
        super().__init__()
        self.model = peft_model(work)
        self.losses: list[float] = []

    def loss(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss that a local step minimises."""
        loss = loss_of(self.model, (tokens, labels))
        self.losses.append(loss.item())
        return loss

    @torch.no_grad()
    def metrics(self, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, Weighted]:
        """The metrics of an evaluation."""
        return {"loss": Weighted.from_unweighted(loss_of(self.model, (tokens, labels)).item())}


class Steps(Dataset):
    """A client's batches, each padded to its own longest row, which slices of one tensor could not be."""

    def __init__(self, batches: list[Batch], client: int):
        super().__init__(raw_data=tuple(tokens for tokens, _ in batches), user_id=str(client))
        self.batches = batches

    def iter(self, batch_size: int | None) -> Iterator[Batch]:
        """The batches of one epoch."""
        return iter(self.batches)


class PflSimulation(Program):
    """Rounds of pfl on one model; batches are tensors before the first round."""

    def __init__(self, work: Work, options: argparse.Namespace):
        use_threads(options.threads)
        self.work = work
        self.start = to_peft(work.adapters)
        self.module = LossModule(work)
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]

        def local_optimizer(parameters: Iterator[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
            return optimizer_of(work, [parameter for parameter in parameters if parameter.requires_grad])

        # Rate 1: the mean difference of the clients is the step of the global model.
        self.model = PyTorchModel(self.module, local_optimizer, torch.optim.SGD(trained, lr=1.0))
        clients = [Steps(batches_of(work, client), client) for client in range(work.clients)]
        sampler = get_user_sampler("minimize_reuse", list(range(work.clients)))
        data = FederatedDataset(lambda client: clients[client], sampler)
        self.backend = SimulatedBackend(training_data=data, val_data=data)
        self.algorithm = FederatedAveraging()
        self.training = NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=work.learning_rate, local_batch_size=work.batch
        )
        self.rounds = 0

    def round(self) -> None:
        """One central iteration from the initial adapters."""
        set_adapters(self.module.model, self.start)
        self.module.losses.clear()
        self.rounds += 1
        until = NNAlgorithmParams(
            central_num_iterations=self.rounds,
            evaluation_frequency=NEVER,
            train_cohort_size=self.work.clients,
            val_cohort_size=None,
        )
        self.algorithm.run(until, self.backend, self.model, self.training, send_metrics_to_platform=False)

    def result(self) -> tuple[Arrays, float]:
        """The model after the central step."""
        losses = self.module.losses
        return adapters_of(self.module.model, self.work.adapters), sum(losses) / len(losses)


if __name__ == "__main__":
    serve(PflSimulation)
