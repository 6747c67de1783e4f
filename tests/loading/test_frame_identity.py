"""Frame i of a pack is the frame of the source shown at i / F seconds: the counter burnt into it says so.

Everything between the video file and the decoded tensor takes part: selection, cache, clip index, key-frames, latents,
training, the file, the planner and the decoder.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import counter
import numpy as np
import pytest
import tiny
import torch

from neuralloader import NeuralVideoDataset
from neuralloader.backends import Units
from neuralloader.backends.precision import autocast
from neuralloader.loading.decode import Decoder
from neuralloader.loading.output import to_uint8
from neuralloader.packfile import Pack

CPU = torch.device("cpu")

# epochs until every counter can be read with room to spare
EPOCHS: dict[tuple[str, tiny.Config], int] = {("dnerv", "fast"): 60, ("dnerv", "paper"): 32, ("nerv", "fast"): 34}


def _read_numbers(videos: torch.Tensor) -> list[int]:
    """(n, 3, H, W) uint8 -> the number on each."""
    return [counter.read(frame) for frame in videos.permute(0, 2, 3, 1).numpy()]


def _decode_all(path: Path) -> list[int]:
    pack = Pack(path)
    return _read_numbers(Decoder(pack, CPU).decode(np.arange(len(pack.frames))))


def test_every_frame_of_a_pack_at_the_native_rate(every_pack: tiny.TinyPack) -> None:
    assert [(video.name, video.num_frames) for video in Pack(every_pack.path).index.videos] == [*tiny.CORPUS.items()]
    assert _decode_all(every_pack.path) == every_pack.numbers.tolist()


@pytest.mark.parametrize(("backend", "config"), EPOCHS)
def test_every_frame_of_a_pack_at_a_rate_that_skips(backend: str, config: tiny.Config, tmp_path: Path) -> None:
    lengths = {"one.avi": 1, "three.avi": 3, "twenty.avi": 21, "thirty.avi": 34}
    rate = 4
    source = tiny.write_corpus(tmp_path / "source", dict(sorted(lengths.items())))
    epochs = EPOCHS[backend, config]
    pack = tiny.pack_tiny(
        source, tmp_path / "a.nvpack", config, backend=backend, epochs=epochs, frame_rate=rate, faithful=True
    )

    expected = []
    for place, (name, length) in enumerate(sorted(lengths.items())):
        num_stored = -(-length * rate // tiny.SOURCE_RATE)  # the last frame is shown for a tenth of a second
        assert pack.index.videos[place].name == name
        assert pack.index.videos[place].num_frames == num_stored
        expected += [100 * place + int(Fraction(i, rate) * tiny.SOURCE_RATE) for i in range(num_stored)]
    assert {pack.index.videos[0].num_frames, pack.index.videos[3].num_frames} == {1, 9}, "with and without padding"
    assert _decode_all(pack.path) == expected


@pytest.mark.parametrize(("backend", "config"), [(b, c) for b in ("cnerv", "hnerv") for c in ("fast", "paper")])
def test_a_latent_makes_its_own_frame(
    backend: str, config: tiny.Config, make_pack: Callable[..., tiny.TinyPack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly: with two latents of the pack exchanged, their two frames are exchanged, and no other changes."""
    pack = Pack(make_pack(backend, config).path)
    rows = np.arange(len(pack.frames))
    plain = Decoder(pack, CPU).decode(rows)
    stored = pack.latents()
    assert len(stored.symbols) == len(rows), "every frame has one"
    exchanged = rows.copy()
    exchanged[[3, 25]] = 25, 3
    monkeypatch.setattr(pack, "latents", lambda: replace(stored, symbols=stored.symbols[exchanged]))
    found = Decoder(pack, CPU).decode(rows)
    assert int((found.short() - plain[torch.from_numpy(exchanged)].short()).abs().max()) <= 1
    assert not torch.equal(found[3], plain[3])


@pytest.mark.parametrize("config", ["fast", "paper"])
def test_a_time_makes_its_own_frame(config: tiny.Config, make_pack: Callable[..., tiny.TinyPack]) -> None:
    """Exactly: NeRV's frames are its network at k / K, and nothing else of the pack."""
    pack = Pack(make_pack("nerv", config).path)
    backend, num_frames = pack.load_backend(), len(pack.frames)
    decoded = Decoder(pack, CPU).decode(np.arange(num_frames))
    none = torch.zeros(1, 1)
    for k in range(num_frames):
        time = torch.tensor([[k / num_frames]], dtype=torch.float64)
        with torch.no_grad(), autocast(CPU):
            frame = to_uint8(backend.decode((), Units(torch.full((1, 2), -1), none, none, time), None)[0, 0])
        assert int((frame.short() - decoded[k].short()).abs().max()) <= 1


@pytest.mark.parametrize(("frames_per_clip", "step"), [(8, 8), (5, 3), (1, 1), (20, 1), (3, 7)])
def test_windows_hold_the_frames_they_say(every_pack: tiny.TinyPack, frames_per_clip: int, step: int) -> None:
    dataset = NeuralVideoDataset(
        every_pack.path, frames_per_clip=frames_per_clip, step_between_clips=step, device="cpu", return_info=True
    )
    seen = set()
    for video, label, info in dataset.__getitems__(range(len(dataset))):
        length = list(tiny.CORPUS.values())[info["video_index"]]
        first = round(float(info["pts_seconds"][0]) * tiny.SOURCE_RATE)
        frames = [min(first + i, length - 1) for i in range(frames_per_clip)]  # the last frame stands in for padding
        assert _read_numbers(video) == [100 * info["video_index"] + frame for frame in frames]
        assert info["pts_seconds"].tolist() == [frame / tiny.SOURCE_RATE for frame in frames]
        assert label == (0 if info["video_index"] < 2 else 1)
        seen.update(_read_numbers(video))
    if step <= frames_per_clip:
        assert seen == set(every_pack.numbers.tolist()), "some frame is in no window"
