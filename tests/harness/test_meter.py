"""Lines that say how far an evaluation is."""

import io

from devft_jax.harness.meter import Meter
from devft_jax.reporting.progress import Progress


def test_the_time_that_is_left_follows_the_work_done():
    stream, now = io.StringIO(), [0.0]
    meter = Meter(Progress(stream), "log-likelihoods", 1000, 200, clock=lambda: now[0])
    for second, share in ((30, 0.25), (31, 0.3), (41, 0.5), (42, 0.55), (55, 0.75)):
        now[0] = second
        meter.advance(100, share)
    # The first pass compiles: what follows is measured from its end.
    assert stream.getvalue().splitlines() == [
        "  log-likelihoods: 200 of 1,000 requests were finished before",
        "  log-likelihoods 300/1,000 requests",
        "  log-likelihoods 500/1,000 requests  left 22s",
        "  log-likelihoods 700/1,000 requests  left 12s",
    ]


def test_nobody_need_listen():
    meter = Meter(None, "texts", 2)
    meter.advance(2, 1.0)
