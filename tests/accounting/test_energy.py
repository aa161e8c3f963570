"""Energy from fake counters, their wrap-around, and the estimate where there are none."""

from types import SimpleNamespace

import jax
import pytest

from devft_jax.accounting.energy import ESTIMATE, EnergyMeter, emissions, energy_summary
from devft_jax.accounting.options import EnergyOptions
from devft_jax.errors import InputError
from devft_jax.options import check_options

CPU = [SimpleNamespace(platform="cpu")]


def write_zone(folder, zone, name, microjoules, span=10_000_000):
    path = folder / zone
    path.mkdir(exist_ok=True)
    for file, text in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", span)):
        (path / file).write_text(f"{text}\n")


@pytest.fixture
def powercap(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    write_zone(tmp_path, "intel-rapl:0:0", "core", 900_000)
    write_zone(tmp_path, "intel-rapl:0:1", "dram", 100_000)
    write_zone(tmp_path, "intel-rapl:1", "package-1", 9_000_000)
    write_zone(tmp_path, "intel-rapl:2", "psys", 5_000_000)
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def test_sockets_and_memory_are_counted_once_and_what_contains_or_is_part_of_them_is_not(powercap):
    meter = EnergyMeter(EnergyOptions(), CPU, powercap=powercap)
    before = meter.read()
    write_zone(powercap, "intel-rapl:0", "package-0", 3_000_000)
    write_zone(powercap, "intel-rapl:0:0", "core", 2_900_000)
    write_zone(powercap, "intel-rapl:0:1", "dram", 600_000)
    write_zone(powercap, "intel-rapl:2", "psys", 9_000_000)
    assert meter.source == "rapl"
    assert meter.spent_since(before, flops=10**15)[1] == pytest.approx(2.0 + 0.5)


def test_a_counter_that_begins_again_is_followed(powercap):
    meter = EnergyMeter(EnergyOptions(), CPU, powercap=powercap)
    before = meter.read()
    write_zone(powercap, "intel-rapl:1", "package-1", 500_000)
    assert meter.spent_since(before, flops=0)[1] == pytest.approx(10.0 - 9.0 + 0.5)


@pytest.mark.parametrize("broken", ["unreadable", "nonsense", "absent"])
def test_counters_that_cannot_be_read_give_way_to_the_estimate(powercap, broken):
    file = powercap / "intel-rapl:1" / "energy_uj"
    if broken == "nonsense":
        file.write_text("many\n")
    else:
        file.unlink()
    if broken == "unreadable":
        file.mkdir()
    meter = EnergyMeter(EnergyOptions(), CPU, powercap=powercap)
    assert meter.source == ESTIMATE
    assert meter.spent_since(meter.read(), flops=10**12)[1] == pytest.approx(1e12 * 1e-9)


def test_without_zones_energy_is_estimated_with_the_stated_joules(tmp_path):
    meter = EnergyMeter(EnergyOptions(joules_per_flop=2e-10), jax.local_devices(), powercap=tmp_path / "absent")
    assert meter.source == ESTIMATE
    assert meter.spent_since(meter.read(), flops=10**10)[1] == pytest.approx(2.0)


class FakeNvml:
    """pynvml's five names; boards 0 and 1, the second without a counter if `old`."""

    class NVMLError(Exception):
        pass

    def __init__(self, old=False):
        self.old = old
        self.millijoules = {0: 5_000, 1: 7_000, "GPU-b": 100}

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, name):
        return name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.old and handle == 1:
            raise self.NVMLError("not supported")
        return self.millijoules[handle]


def gpu(index):
    return SimpleNamespace(platform="gpu", local_hardware_id=index)


@pytest.mark.parametrize(
    ("visible", "devices", "board"),
    [(None, [gpu(1)], 1), ("1", [gpu(0)], 1), ("1,0", [gpu(1)], 0), ("0,GPU-b", [gpu(1)], "GPU-b"), ("0, 1", [gpu(1)], 1)],
)
def test_the_boards_in_use_are_the_ones_that_are_read(monkeypatch, powercap, visible, devices, board):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = FakeNvml()
    meter = EnergyMeter(EnergyOptions(), devices, powercap=powercap, nvml=nvml)
    before = meter.read()
    nvml.millijoules = {name: value + (2_500 if name == board else 40_000) for name, value in nvml.millijoules.items()}
    assert meter.source == "nvml"
    assert meter.spent_since(before, flops=0)[1] == pytest.approx(2.5)


def test_all_boards_in_use_are_added(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = FakeNvml()
    meter = EnergyMeter(EnergyOptions(), [gpu(0), gpu(1)], nvml=nvml)
    before = meter.read()
    nvml.millijoules = {0: 6_000, 1: 9_000}
    assert meter.spent_since(before, flops=0)[1] == pytest.approx(3.0)


def test_a_board_without_a_counter_gives_way_to_the_estimate_and_never_to_the_hosts_counters(monkeypatch, powercap):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    meter = EnergyMeter(EnergyOptions(), [gpu(0), gpu(1)], powercap=powercap, nvml=FakeNvml(old=True))
    assert meter.source == ESTIMATE
    assert meter.spent_since(meter.read(), flops=10**12)[1] == pytest.approx(5.0)


def test_emissions_follow_the_grid():
    assert emissions(7.2e6, EnergyOptions(grid_kgco2e_per_kwh=0.05)) == {
        "kwh": 2.0,
        "kgco2e": pytest.approx(0.1),
        "grid_kgco2e_per_kwh": 0.05,
    }


def test_a_summary_names_every_source_and_marks_the_estimate():
    assert energy_summary({}, EnergyOptions(), 1e-9).source == "no round yet"
    measured = energy_summary({"rapl": 3.6e6}, EnergyOptions(), 1e-9)
    assert (measured.kwh, measured.source) == (1.0, "rapl")
    assert "joules_per_flop" not in measured.to_plain()
    mixed = energy_summary({"nvml": 1.8e6, ESTIMATE: 1.8e6}, EnergyOptions(), 5e-12)
    assert mixed.kwh == 1.0
    assert mixed.source == "nvml + estimate from FLOPs"
    assert mixed.joules_per_flop == 5e-12


@pytest.mark.parametrize("name", ["grid_kgco2e_per_kwh", "joules_per_flop"])
def test_a_negative_factor_is_refused(name):
    with pytest.raises(InputError, match=f"{name} -1.0 is negative; use 0 or more."):
        check_options(EnergyOptions(**{name: -1.0}))


def test_a_round_whose_counters_fail_is_estimated_and_said_to_be(monkeypatch, tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    meter = EnergyMeter(EnergyOptions(joules_per_flop=1e-9), jax.local_devices(), powercap=tmp_path)
    before = meter.read()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("3000000")
    assert meter.spent_since(before, flops=0) == ("rapl", pytest.approx(2.0))
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.spent_since(before, flops=10**9) == (ESTIMATE, pytest.approx(1.0))
    assert meter.read() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = FakeNvml()
    meter = EnergyMeter(EnergyOptions(), [gpu(0), gpu(1)], nvml=nvml)
    before, nvml.old = meter.read(), True
    assert meter.spent_since(before, flops=10**12) == (ESTIMATE, pytest.approx(5.0))
