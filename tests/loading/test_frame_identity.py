"""Frame i of a pack is the frame of the source shown at i / F seconds: the counter burnt into it says so.

Everything between the video file and the decoded tensor takes part: selection, cache, clip index, key-frames, latents,
training, the file, the planner and the decoder.
"""

from fractions import Fraction
from pathlib import Path

import counter
import numpy as np
import pytest
import tiny
import torch

from neuralloader import NeuralVideoDataset
from neuralloader.loading.decode import Decoder
from neuralloader.packfile import Pack

EPOCHS = {"fast": 60, "paper": 32}  # until every counter can be read with room to spare


def _read_numbers(videos: torch.Tensor) -> list[int]:
    """(n, 3, H, W) uint8 -> the number on each."""
    return [counter.read(frame) for frame in videos.permute(0, 2, 3, 1).numpy()]


def _decode_all(path: Path) -> list[int]:
    pack = Pack(path)
    return _read_numbers(Decoder(pack, torch.device("cpu")).decode(np.arange(len(pack.frames))))


def test_every_frame_of_a_pack_at_the_native_rate(any_pack: tiny.TinyPack) -> None:
    assert [(video.name, video.num_frames) for video in Pack(any_pack.path).index.videos] == [*tiny.CORPUS.items()]
    assert _decode_all(any_pack.path) == any_pack.numbers.tolist()


@pytest.mark.parametrize("config", ["fast", "paper"])
def test_every_frame_of_a_pack_at_a_rate_that_skips(config: tiny.Config, tmp_path: Path) -> None:
    lengths = {"one.avi": 1, "three.avi": 3, "twenty.avi": 21, "thirty.avi": 34}
    rate = 4
    source = tiny.write_corpus(tmp_path / "source", dict(sorted(lengths.items())))
    pack = tiny.pack_tiny(source, tmp_path / "a.nvpack", config, epochs=EPOCHS[config], frame_rate=rate, faithful=True)

    expected = []
    for place, (name, length) in enumerate(sorted(lengths.items())):
        num_stored = -(-length * rate // tiny.SOURCE_RATE)  # the last frame is shown for a tenth of a second
        assert pack.index.videos[place].name == name
        assert pack.index.videos[place].num_frames == num_stored
        expected += [100 * place + int(Fraction(i, rate) * tiny.SOURCE_RATE) for i in range(num_stored)]
    assert {pack.index.videos[0].num_frames, pack.index.videos[3].num_frames} == {1, 9}, "with and without padding"
    assert _decode_all(pack.path) == expected


@pytest.mark.parametrize(("frames_per_clip", "step"), [(8, 8), (5, 3), (1, 1), (20, 1), (3, 7)])
def test_windows_hold_the_frames_they_say(any_pack: tiny.TinyPack, frames_per_clip: int, step: int) -> None:
    dataset = NeuralVideoDataset(
        any_pack.path, frames_per_clip=frames_per_clip, step_between_clips=step, device="cpu", return_info=True
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
        assert seen == set(any_pack.numbers.tolist()), "some frame is in no window"
