"""The loop of a run: stages, rounds and callbacks."""

import time
from collections.abc import Sequence

from devft_jax.training.callbacks import Callback, Running


def run_rounds(run: Running, callbacks: Sequence[Callback]) -> None:
    """Train until the run ends, and set `run.finished`, or until a stop is requested.

    Args:
      run: a new or resumed run; advanced.
      callbacks: called in this order.
    """
    trainer, state, stop = run.trainer, run.state, run.stop
    for callback in callbacks:
        callback.on_begin(run)
    while trainer.advance(state, run.history):
        if stop.signal is not None:
            return
        # From here on a stop would lose work.
        stop.doing = f"round {state.round + 1}"
        if not state.rounds_in_stage:
            for callback in callbacks:
                callback.on_stage(run, state.totals.stages[-1])
        row = trainer.step(state, run.history)
        stop.settle()
        began, evaluating = time.perf_counter(), _evaluating(run)
        for callback in callbacks:
            callback.on_round(run, row)
        run.seconds_beside += time.perf_counter() - began - (_evaluating(run) - evaluating)
        if run.stopping:
            return
        stop.doing = "the change of stages" if run.at_end_of_stage else "the round"
    run.finished, stop.doing = True, "the run"
    for callback in callbacks:
        callback.on_trained(run)


def _evaluating(run: Running) -> float:
    """Seconds that evaluation has taken so far, including its compilation."""
    seconds = run.state.totals.seconds
    return seconds.evaluate + seconds.compile
