"""Several processes: what is refused in them."""

import jax
import pytest

from devft_jax.errors import InputError
from devft_jax.exporting.export import export
from devft_jax.training.replay import replay


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda *_: 2)


@pytest.mark.parametrize(
    ("what", "act"),
    [
        ("a replay", lambda: replay("nowhere", client="a", round=1)),
        ("an export", lambda: export("nowhere", "nowhere-else")),
    ],
)
def test_what_only_one_process_can_do_is_refused_in_two(two, what, act):
    with pytest.raises(InputError, match=rf"^{what} works in one process only, and jax.distributed has joined 2; start it"):
        act()
