"""What all backends share: units as one thing, and a refusal of sizes that names the nearest that fits."""

import pytest
import torch

from neuralloader.backends import BACKENDS, PRESETS, Units, network_of
from neuralloader.backends.base import refuse_size


@pytest.mark.parametrize(
    ("size", "multiple", "nearest"),
    [((100, 100), 16, "96x96"), ((1, 1), 16, "16x16"), ((250, 320), 16, "256x320"), ((720, 1281), 32, "704x1280")],
)
def test_the_nearest_size_that_fits(size: tuple[int, int], multiple: int, nearest: str) -> None:
    assert refuse_size(size, multiple) == (
        f"frame size {size[0]}x{size[1]}: height and width must be multiples of {multiple}; the nearest is {nearest}"
    )
    height, width = (int(side) for side in nearest.split("x"))
    for backend, config in BACKENDS:
        network_of(backend, config, "XS", (-(-height // 16) * 16, -(-width // 16) * 16))


def test_units_have_a_length_and_move_together() -> None:
    units = Units(torch.zeros(3, 2, dtype=torch.int64), *torch.zeros(3, 3, 8))
    assert len(units) == 3
    moved = units.to(torch.device("meta"))
    assert {t.device.type for t in (moved.keys, moved.phase, moved.time, moved.network_time)} == {"meta"}
    assert moved.keys.dtype == torch.int64


@pytest.mark.parametrize(("backend", "config"), BACKENDS)
def test_a_network_by_preset_or_width(backend: str, config: str) -> None:
    record, network = BACKENDS[backend, config]
    for preset in PRESETS:
        assert isinstance(network_of(backend, config, preset, (64, 96)), record)
    assert network_of(backend, config, 24, (64, 96)) != network_of(backend, config, 32, (64, 96))
    built = network(network_of(backend, config, 8, (64, 96)))
    assert built.frames_per_unit in (1, 8)
    with pytest.raises(ValueError, match="preset 'XXL' must be one of XS, S, M, L"):
        network_of(backend, config, "XXL", (64, 96))
    for width in (7, 4097, -1):
        with pytest.raises(ValueError, match=f"width {width} must be 8 to 4096 channels"):
            network_of(backend, config, width, (64, 96))
