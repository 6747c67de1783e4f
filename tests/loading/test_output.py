"""The last touch on frames: grey levels or 0 to 1, another size, another order of axes."""

import numpy as np
import pytest
import torch
from PIL import Image

from neuralloader.loading.output import OUTPUT_DTYPES, OutputFormat, arrange, check_output, finish_frames, to_uint8


@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", OUTPUT_DTYPES)
def test_frames_of_every_type(given: torch.dtype, dtype: torch.dtype) -> None:
    frames = torch.linspace(-0.25, 1.25, 96).view(2, 4, 3, 2, 2).to(given)
    finished = finish_frames(frames, dtype)
    assert (finished.dtype, finished.shape) == (dtype, frames.shape)
    expected = frames.double().clamp(0, 1)
    if dtype == torch.uint8:
        assert torch.equal(finished, (frames.float() * 255).round().clamp(0, 255).to(torch.uint8))
        assert (finished.double() / 255 - expected).abs().max() <= 0.51 / 255
    else:
        assert torch.equal(finished, expected.to(dtype))
        assert len(finished.unique()) > 40, "floats are not rounded to grey levels"
    assert not torch.equal(frames, frames.clamp(0, 1)), "what was given is left as it was"


@pytest.mark.parametrize(
    ("value", "level"), [(0.0, 0), (1.0, 255), (-3.0, 0), (7.0, 255), (127.4 / 255, 127), (127.6 / 255, 128)]
)
def test_grey_levels_are_rounded_and_clamped(value: float, level: int) -> None:
    assert to_uint8(torch.full((3, 2, 2), value)).unique().tolist() == [level]


@pytest.mark.parametrize("dtype", OUTPUT_DTYPES)
@pytest.mark.parametrize("shape", [(3, 12, 16), (5, 3, 12, 16), (2, 5, 3, 12, 16)])
def test_another_size(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    frames = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    finished = finish_frames(frames, dtype, (5, 8))
    assert (finished.dtype, finished.shape) == (dtype, (*shape[:-2], 5, 8))
    levels = finished.float() * (1 if dtype == torch.uint8 else 255)
    for frame, found in zip(frames.view(-1, 12, 16), levels.view(-1, 5, 8), strict=True):
        expected = Image.fromarray(frame.numpy() * 255).resize((8, 5), Image.Resampling.BILINEAR)  # antialiased, too
        np.testing.assert_allclose(found.numpy(), np.asarray(expected), atol=1.1)


def test_the_size_it_has_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "interpolate", None)
    frames = torch.rand(2, 3, 4, 6)
    assert torch.equal(finish_frames(frames, torch.float32, (4, 6)), frames)


def test_low_precision_is_resized_in_float32() -> None:
    """Rounded to bfloat16's steps only at the end, if at all."""
    frames = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(
        finish_frames(frames, torch.float32, (3, 3)), finish_frames(frames.float(), torch.float32, (3, 3))
    )


@pytest.mark.parametrize("axes_before", [0, 1, 2])
def test_orders_of_axes(axes_before: int) -> None:
    clips = torch.arange(2**axes_before * 5 * 3 * 4 * 6).view(*[2] * axes_before, 5, 3, 4, 6)
    before = list(range(axes_before))
    t, c, h, w = (axes_before + i for i in range(4))
    orders: dict[OutputFormat, list[int]] = {"TCHW": [t, c, h, w], "THWC": [t, h, w, c], "CTHW": [c, t, h, w]}
    for output_format, order in orders.items():
        arranged = arrange(clips, output_format)
        assert torch.equal(arranged, clips.permute(*before, *order))
        assert arranged.data_ptr() == clips.data_ptr(), "a view"


def test_what_is_not_there_is_refused() -> None:
    for dtype in OUTPUT_DTYPES:
        check_output(dtype, "THWC")
    known = r"torch\.uint8, torch\.float32, torch\.float16, torch\.bfloat16"
    with pytest.raises(ValueError, match=rf"dtype=torch\.int8 must be one of {known}"):
        check_output(torch.int8, "TCHW")
    with pytest.raises(ValueError, match="output_format='NCHW' must be one of TCHW, THWC, CTHW"):
        check_output(torch.uint8, "NCHW")
