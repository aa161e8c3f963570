"""How processes are told to find each other: flags, environment, and what is wrong with them."""

import pytest

from devft_jax.errors import InputError
from devft_jax.runtime.joining import asked_for, join
from devft_jax.runtime.options import HostOptions


def test_without_hosts_there_is_one_process():
    assert asked_for(HostOptions(), {}).hosts is None
    join(HostOptions())


def test_flags_override_the_environment():
    environment = {"DEVFT_HOSTS": "a:1", "DEVFT_PROCESSES": "4", "DEVFT_PROCESS": "3"}
    assert asked_for(HostOptions(), environment) == HostOptions(hosts="a:1", processes=4, process=3)
    assert asked_for(HostOptions(process=0), environment) == HostOptions(hosts="a:1", processes=4, process=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 2}, "processes is given without hosts; give --hosts HOST:PORT"),
        ({"hosts": "node1"}, "hosts 'node1' is neither auto nor HOST:PORT"),
        ({"hosts": "node1:99999"}, "hosts 'node1:99999' is neither auto nor HOST:PORT"),
        ({"hosts": "node1:12", "process": 0}, "hosts node1:12 needs the number of processes"),
        ({"hosts": "node1:12", "processes": 2}, "hosts node1:12 needs the number of this process;"),
        (
            {"hosts": "node1:12", "processes": 2, "process": 2},
            "process 2 of 2 does not exist; processes are",
        ),
    ],
)
def test_bad_flags_are_refused(options, message):
    with pytest.raises(InputError) as error:
        asked_for(HostOptions(**options), {})
    assert str(error.value).startswith(message)


def test_a_bad_variable_is_named():
    with pytest.raises(InputError, match="DEVFT_PROCESSES 'two' is not a whole number"):
        asked_for(HostOptions(), {"DEVFT_HOSTS": "a:1", "DEVFT_PROCESSES": "two"})


def test_auto_outside_of_a_job_is_refused(monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="hosts auto finds no TPU pod slice and no job of Slurm, Open MPI or"):
        join(HostOptions(hosts="auto"))
