"""The rate of matrix products: measured once, kept, and never a reason to fail."""

import json

import pytest

from devft_jax.accounting import speed as module
from devft_jax.accounting.speed import measured_speed


@pytest.fixture
def measurements(tmp_path, monkeypatch):
    """A cache folder of its own, and the sizes that were measured, each at a rate of its own."""
    monkeypatch.setenv("DEVFT_CACHE", str(tmp_path / "cache"))
    seen = []

    def measured(shape, dtype):
        seen.append(shape)
        return 1e9 * len(seen)

    monkeypatch.setattr(module, "_measured", measured)
    return seen


def test_a_rate_is_measured_once_for_each_size_and_kept(measurements, tmp_path):
    first = measured_speed(4096, 128, 352, "float32")
    assert (first.flops_per_second, first.kept_in) == (1e9, tmp_path / "cache" / "speed.json")
    assert measured_speed(9999, 128, 352, "float32") == first
    assert measured_speed(64, 128, 352, "float32").flops_per_second == 2e9
    assert measured_speed(4096, 128, 352, "bfloat16").flops_per_second == 3e9
    assert measurements == [(1024, 128, 352), (64, 128, 352), (1024, 128, 352)]
    assert all("cores" in name and "jax " in name for name in json.loads(first.kept_in.read_text()))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": "fast"}', '{"a": -1.0}'])
def test_a_file_of_anything_else_is_measured_anew(measurements, tmp_path, text):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "speed.json").write_text(text)
    assert measured_speed(8, 8, 8, "float32").flops_per_second == 1e9
    assert measured_speed(8, 8, 8, "float32").flops_per_second == 1e9
    assert len(measurements) == 1


def test_where_nothing_can_be_kept_it_is_measured_all_the_same(measurements, tmp_path):
    (tmp_path / "cache").write_text("a file in the folder's place")
    assert measured_speed(8, 8, 8, "float32").kept_in is None


def test_a_fast_device_holds_few_results_at_once():
    begun, waited = [], []

    class Result:
        def block_until_ready(self):
            waited.append(self)
            return self

    def product(left, right):
        begun.append(Result())
        assert len(begun) - len(waited) <= module.WAITING
        return begun[-1]

    module._timed(product, None, None, 1000)
    assert (len(begun), len(set(waited))) == (1000, 1000)


def test_a_real_measurement_is_a_rate(monkeypatch):
    monkeypatch.setattr(module, "MEASURED_FOR", 0.02)
    assert 1e6 < module._measured((64, 64, 64), "float32") < 1e16
