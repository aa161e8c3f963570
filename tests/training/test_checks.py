"""What a run needs of its model, checked before anything is compiled."""

import pytest

from devft_jax.commands.cli import run_command
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.training.checks import check_ranks
from tests.tiny import CONFIG


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 9}, "rank 9 exceeds 8, the largest rank that projection 'v'"),
        (
            {"rank": 8, "targets": ("q", "o", "down"), "algorithm": "flora", "client_ranks": (4, 17)},
            "client_ranks 17 exceeds 16",
        ),
        ({"algorithm": "c2a", "hyper_rank": 17}, "hyper_rank 17 exceeds the model's width 16"),
    ],
)
def test_a_rank_that_no_update_can_have_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        check_ranks(RunConfig(**options), CONFIG)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 8},
        {"rank": 16, "targets": ("q", "gate")},
        # The stack of a cohort's updates may have any rank; a hypernetwork has none of these.
        {"rank": 8, "algorithm": "flora", "client_ranks": (8, 8), "clients_per_round": 9},
        {"rank": 5000, "algorithm": "c2a"},
    ],
)
def test_ranks_up_to_the_narrowest_projection_are_taken(options):
    check_ranks(RunConfig(**options), CONFIG)


@pytest.mark.parametrize("command", [["run"], ["plan"], ["compare", "--arms", "fedit"]])
def test_every_command_refuses_it_before_it_begins(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command([*command, "--rank", "5000"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "rank 5000 exceeds 64, the largest rank that projection 'v' [128 x 64] can have; use 64 or less" in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
