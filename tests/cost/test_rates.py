"""How fast devices are: what was measured, scaled or assumed, and the files of one's own."""

import json
import math

import pytest

from wmdd.base.errors import WmddError
from wmdd.cost import rates

OWN = {
    "machine": "mine", "torch": "2", "device": "cuda", "peak": {"flops": 1e12, "bytes_per_s": 1e11},
    "rates": {"recover": {"32": 5e11}, "student": {}, "teacher": {}, "features": {}, "relabel": {}},
}  # fmt: skip


def test_the_nearest_side_in_logarithm_counts():
    table = {32: 1.0, 128: 2.0}
    assert [rates.nearest(table, side) for side in (8, 60, 66, 500)] == [1, 1, 2, 2]
    assert math.isnan(rates.nearest(table, 0))


def test_a_rate_says_how_it_is_known():
    device = rates.Device(
        name="d", machine="m", device="cpu", peak={"flops": 100, "bytes_per_s": 1}, preliminary=("student",), narrow=0.5,
        rates={"recover": {32: 8.0}, "student": {32: 4.0}},
    )  # fmt: skip
    assert device.rate("recover", 32, 64) == device.rate("recover", 32, 128) == (8, "measured")
    assert device.rate("recover", 32, 0) == (8, "measured")  # of a transformer, which has no width
    assert device.rate("recover", 32, 16) == (4, "scaled")
    assert device.rate("student", 32, 64) == (4, "preliminary")
    assert device.rate("teacher", 32, 64) == (4, "assumed")


def test_of_gpus_everything_is_assumed():
    for name in ("a100", "h100", "h200"):
        device = rates.device(name)
        assert device.rate("recover", 224, 64) == (rates.table()["share"] * device.peak.flops, "assumed")


def test_a_machine_of_ones_own(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(OWN | {"sections": {"more": 1}}))
    device = rates.read(path)
    assert (device.name, device.machine, device.kind, device.rates) == ("own", "mine", "cuda", {"recover": {32: 5e11}})


def test_a_mistake_in_a_file_of_rates_is_one_line(tmp_path):
    mistakes = {
        "peak.bytes_per_s: Field required": OWN | {"peak": {"flops": 1e12}},
        "peak.flops: Input should be greater than 0": OWN | {"peak": {"flops": -1, "bytes_per_s": 1}},
        "rates.recover.large.[key]: Input should be a valid integer": OWN | {"rates": {"recover": {"large": 1e9}}},
        "rates.recover.32: Input should be a valid number": OWN | {"rates": {"recover": {"32": "fast"}}},
        "rates: no stage 'barycenter' runs a network; give": OWN | {"rates": {"barycenter": {"32": 1e9}}},
        "device: Input should be 'cpu' or 'cuda'": OWN | {"device": "tpu"},
        "Input should be a valid dictionary": [1],
    }
    path = tmp_path / "own.json"
    for says, content in mistakes.items():
        path.write_text(json.dumps(content))
        with pytest.raises(WmddError) as caught:
            rates.read(path)
        assert str(caught.value).startswith(f"own.json does not hold the rates of a device ({says}")
        assert str(caught.value).endswith("docs/use/cost.md has the shape")
        assert "\n" not in str(caught.value)
