"""Damaged and hostile packs by the hundred: each is refused by name or read, in bounded time and memory."""

import json
import subprocess
import sys
from pathlib import Path

import fuzz
import numpy as np
import pytest
import tiny

from neuralloader.errors import PackError

FAST_COUNT, SLOW_COUNT = 125, 1250  # of each of the two packs
MAX_MEMORY_RATIO = 2.0


@pytest.mark.timeout(120)
def test_mutations(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    """Another set for each pack, so that together they see more."""
    _mutate_and_read(any_pack.path, tmp_path, seed=10 if any_pack.config == "fast" else 11, count=FAST_COUNT)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "seed"), [("hnerv-paper-videos", 12), ("dnerv-fast-appendable", 13), ("hnerv-paper-splits", 14)]
)
def test_mutations_of_other_kinds(name: str, seed: int, tmp_path: Path) -> None:
    """A network for each video, with latents on grids of their own; a pack with its encoder; and one with splits."""
    _mutate_and_read(Path(__file__).parent / "golden" / f"{name}.nvpack", tmp_path, seed, count=FAST_COUNT)


def _mutate_and_read(path: Path, folder: Path, seed: int, count: int) -> None:
    intact = {decode: fuzz.read_everything(path, decode=decode) for decode in (False, True)}
    outcomes = {"refused": 0, "identical": 0, "read": 0}
    for number in range(count):
        mutation = fuzz.mutate(path, seed, number)
        decode = number % 5 == 0
        try:
            outcome = fuzz.check(mutation, folder / "fuzzed.nvpack", intact[decode], decode=decode)
        except Exception as error:
            pytest.fail(f"mutation {number} of seed {seed} ({mutation.what:.200}): {type(error).__name__}: {error}")
        outcomes[outcome] += 1
    assert outcomes["refused"] > count / 2, outcomes
    assert outcomes["read"] > 0, outcomes


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1])
def test_many_mutations_within_time_and_memory(any_pack: tiny.TinyPack, seed: int) -> None:
    """In a process of its own, whose peak of memory is compared with that of reading the whole pack."""
    whole, fuzzed = (_in_a_process(any_pack.path, seed, count) for count in (0, SLOW_COUNT))
    assert fuzzed["problems"] == []
    assert sum(fuzzed["outcomes"].values()) == SLOW_COUNT
    assert fuzzed["peak_kib"] <= MAX_MEMORY_RATIO * whole["peak_kib"], fuzzed["growth_mib"]


def _in_a_process(path: Path, seed: int, count: int) -> dict:
    command = [sys.executable, fuzz.__file__, str(path), "--seed", str(seed), "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the fuzz itself ------------------------------------------------------------------------------------------------


def test_a_mutation_depends_on_its_numbers_only(fast_pack: tiny.TinyPack) -> None:
    seen = [fuzz.mutate(fast_pack.path, 3, number) for number in range(58)]
    assert seen == [fuzz.mutate(fast_pack.path, 3, number) for number in range(58)]
    assert len({mutation.data for mutation in seen}) > 50
    assert 10 < sum(mutation.is_signed for mutation in seen) < 58


def test_signing_what_was_not_changed_gives_a_pack_that_reads_the_same(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    """Else "refused" would say nothing about the mutations."""
    intact = fuzz.read_everything(any_pack.path, decode=True)
    parts = fuzz.Parts.of(any_pack.path)
    assert parts.sign() == any_pack.path.read_bytes()
    for prefix in ("keyframes", "latents") if any_pack.config == "fast" else ("keyframes",):
        parts.set_items(prefix, parts.items(prefix))
    mutation = fuzz.Mutation("nothing", parts.sign(), is_signed=True)
    assert fuzz.check(mutation, tmp_path / "a.nvpack", intact, decode=True) == "identical"


def test_a_change_that_can_be_read_is_noticed(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    intact = fuzz.read_everything(fast_pack.path, decode=False)
    parts = fuzz.Parts.of(fast_pack.path)
    parts.manifest["training"]["seed"] += 1
    signed = fuzz.Mutation("seed", parts.sign(), is_signed=True)
    assert fuzz.check(signed, tmp_path / "a.nvpack", intact, decode=False) == "read"
    with pytest.raises(AssertionError, match="damage was read as if it belonged there"):
        fuzz.check(fuzz.Mutation("seed", parts.sign(), is_signed=False), tmp_path / "a.nvpack", intact, decode=False)


# --- findings -------------------------------------------------------------------------------------------------------


def _refused(parts: fuzz.Parts, tmp_path: Path) -> str:
    path = tmp_path / "hostile.nvpack"
    path.write_bytes(parts.sign())
    with pytest.raises(PackError, match=r"hostile\.nvpack") as caught:
        fuzz.read_everything(path, decode=True)
    return str(caught.value)


def test_a_network_that_needs_key_frames_in_a_pack_without(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    parts = fuzz.Parts.of(any_pack.path)
    for name in ("clips.start_key", "clips.end_key"):
        parts.tensors[name] = np.full(len(parts.tensors["clips.video"]), -1, np.int8)
    for name in ("keys.video", "keys.frame"):
        parts.tensors[name] = parts.tensors[name][:0]
    parts.set_items("keyframes", [])
    assert "it lists no key-frame, but its dnerv needs some" in _refused(parts, tmp_path)


def test_clips_that_unfold_to_a_giant_table_of_frames(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    """Eight bytes of tables stand for 256 frames, of which each would take 64 in memory."""
    parts = fuzz.Parts.of(fast_pack.path)
    num_clips = 8000
    first = np.arange(num_clips, dtype=np.uint32) * 256
    parts.manifest |= {"frames_per_clip": 256, "key_interval": 256}
    ones, zeros = (np.full(num_clips, value, np.uint8) for value in (1, 0))
    parts.tensors |= {
        "clips.video": zeros, "clips.first_frame": first, "clips.num_valid": np.full(num_clips, 256, np.uint16),
        "clips.start_key": zeros, "clips.end_key": ones,
        "keys.video": zeros[:2], "keys.frame": np.array([0, num_clips * 256 - 1], np.uint32),
        "videos.num_frames": np.array([num_clips * 256], np.uint32),
    }  # fmt: skip
    for name in ("num_source_frames", "num_nominal_frames", "label", "frame_rate", "source_frame_rate", "source_size"):
        parts.tensors[f"videos.{name}"] = parts.tensors[f"videos.{name}"][:1]
    parts.tensors["videos.names"] = np.frombuffer(b"x.avi\0", np.uint8)
    parts.set_items("keyframes", parts.items("keyframes")[:2])
    assert f"its table of frames would take {num_clips * 256 * 64} bytes of memory" in _refused(parts, tmp_path)


def test_frames_far_larger_than_their_file(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    parts = fuzz.Parts.of(fast_pack.path)
    parts.manifest["frame_size"] = parts.manifest["network"]["frame_size"] = [16384, 16384]
    assert f"its frames would take {16384 * 16384 * 3} bytes of memory" in _refused(parts, tmp_path)


def test_a_template_that_is_repeated_for_every_key_frame(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    parts = fuzz.Parts.of(fast_pack.path)
    template = parts.tensors["keyframes.template"]
    parts.tensors["keyframes.template"] = np.concatenate([template, np.zeros(1 << 16, np.uint8)])
    assert "keyframes.template has " in (text := _refused(parts, tmp_path))
    assert "where 65536 are allowed" in text


def test_a_class_that_cannot_be_printed(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    parts = fuzz.Parts.of(fast_pack.path)
    parts.manifest["classes"] = ["left", "\ud800"]
    assert "classes must be valid Unicode" in _refused(parts, tmp_path)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_network_with_a_layer_of_no_channels(paper_pack: tiny.TinyPack, tmp_path: Path) -> None:
    parts = fuzz.Parts.of(paper_pack.path)
    parts.manifest["network"]["min_channels"] = parts.manifest["network"]["base_channels"] = 1
    fuzz.fit_weights(parts, np.random.default_rng(0))
    assert "has no weights: the network's record is impossible" in _refused(parts, tmp_path)


@pytest.mark.parametrize("shape", [[2**63, 0], [2**62, 2**62, 0]])
def test_a_shape_that_no_array_can_have(fast_pack: tiny.TinyPack, tmp_path: Path, shape: list[int]) -> None:
    parts = fuzz.Parts.of(fast_pack.path)
    parts.tensors["skipped.text"] = np.zeros(0, np.uint8)
    parts.entries["skipped.text"] = {"shape": shape}
    path = tmp_path / "hostile.nvpack"
    path.write_bytes(parts.sign())
    with pytest.raises(
        PackError, match=r"tensor skipped\.text has shape .*, not at most 8 sizes that an array can have"
    ):
        fuzz.read_everything(path, decode=False)
