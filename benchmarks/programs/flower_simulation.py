"""Flower's simulation: its federated averaging over Ray, one actor per core with one thread each, the model under PEFT.

A simulation runs once; its server app answers the commands and runs one round of the strategy for each. An actor keeps the
model and the batches of the work from one client to the next; Flower's own example builds the model for every client.
"""

import argparse
import os
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from protocol import Arrays, Program, Work, answer, own_output, parse
from torch_client import client_of, from_peft, peft_state, set_adapters, to_peft, train


class FlowerSimulation(Program):
    """Rounds of a running simulation."""

    def __init__(self, work: Work, grid: Grid):
        self.work, self.grid = work, grid
        self.start = to_peft(work.adapters)
        self.strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=work.clients, min_available_nodes=work.clients)

    def round(self) -> None:
        """One round of the strategy from the initial adapters."""
        self.outcome = self.strategy.start(grid=self.grid, initial_arrays=ArrayRecord(self.start), num_rounds=1)

    def result(self) -> tuple[Arrays, float]:
        """The strategy's aggregate."""
        adapters = from_peft(self.outcome.arrays.to_torch_state_dict(), self.work.adapters)
        return adapters, float(self.outcome.train_metrics_clientapp[1]["loss"])


def client_app(folder: Path, clients: int | None) -> ClientApp:
    """The app that an actor runs for one client of the work."""
    app = ClientApp()

    @app.train()
    def train_client(message: Message, context: Context) -> Message:
        work, model, batches = client_of(folder, clients, int(context.node_config["partition-id"]))
        set_adapters(model, message.content["arrays"].to_torch_state_dict())
        loss = train(work, model, batches)
        metrics = MetricRecord({"loss": loss, "num-examples": 1})
        content = RecordDict({"arrays": ArrayRecord(peft_state(model)), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def main(options: argparse.Namespace) -> None:
    """Start the simulation; it lasts until the server app gets `stop`."""
    answers = own_output()
    work = Work(options.work, options.clients)
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        answer(FlowerSimulation(work, grid), answers)

    cores = len(os.sched_getaffinity(0))
    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": cores, "include_dashboard": False},
    }
    run_simulation(server, client_app(options.work, options.clients), work.clients, backend_config=backend)


if __name__ == "__main__":
    main(parse())
