"""bfloat16 where the device is fast at it, plain float32 elsewhere."""

from collections.abc import Iterator

import pytest
import torch

from neuralloader.backends import precision
from neuralloader.backends.precision import autocast, fast_dtype


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    fast_dtype.cache_clear()
    yield
    fast_dtype.cache_clear()


@pytest.mark.parametrize(("has_instructions", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_on_a_cpu(monkeypatch: pytest.MonkeyPatch, has_instructions: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(precision.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    assert fast_dtype("cpu") == dtype
    a = torch.ones(4, 4)
    with autocast(torch.device("cpu")):
        assert (a @ a).dtype == dtype
    assert (a @ a).dtype == torch.float32


def test_on_devices_not_known() -> None:
    assert fast_dtype("meta") == torch.float32
