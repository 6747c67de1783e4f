"""The loader's order: seeds, epochs and ranks, and going on after an interruption."""

import gc
import io
import itertools
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from loaders import FORK, clips_of, forks, run_script, same_videos, ways
from torch.utils.data import DataLoader

from neuralloader import NeuralVideoDataset, NeuralVideoLoader
from neuralloader.loading.samplers import RandomClips

# --- order: seeds, epochs, ranks ------------------------------------------------------------------------------------


def test_shuffling_shows_every_item_once_in_an_order_for_each_epoch_and_seed(dataset: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(dataset, 4, shuffle=True, seed=3)
    epochs = [list(itertools.chain(*clips_of(loader))) for _ in range(3)]
    everything = sorted(itertools.chain(*clips_of(NeuralVideoLoader(dataset, 4))))
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other = NeuralVideoLoader(dataset, 4, shuffle=True, seed=4)
    assert list(itertools.chain(*clips_of(other))) != epochs[0]
    loader.set_epoch(1)
    assert list(itertools.chain(*clips_of(loader))) == epochs[1]


@forks
@ways
def test_a_seed_gives_the_same_clips_however_they_are_loaded(
    random_clips: NeuralVideoDataset, fresh: Callable[..., NeuralVideoDataset], way: dict[str, Any]
) -> None:
    expected = NeuralVideoLoader(random_clips, 3, shuffle=True, seed=9)
    loader = NeuralVideoLoader(
        fresh(sampler=random_clips.sampler, return_info=True), 3, shuffle=True, seed=9, **way, persistent_workers=False
    )
    for _ in range(2):
        for own, theirs in zip(loader, expected, strict=True):
            assert clips_of([own]) == clips_of([theirs])
            assert same_videos(own[0], theirs[0])


@pytest.mark.usefixtures("small_steps")
def test_persistent_spawned_workers_give_the_same_clips(
    random_clips: NeuralVideoDataset, fresh: Callable[..., NeuralVideoDataset]
) -> None:
    expected = NeuralVideoLoader(random_clips, 1, shuffle=True, seed=9)
    dataset = fresh(sampler=random_clips.sampler, return_info=True, cache="none")  # so that workers have work
    options = {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True, "prefetch_factor": 4}
    loader = NeuralVideoLoader(dataset, 1, shuffle=True, seed=9, prefetch=1, **options)
    try:
        for _ in range(3):
            before = dataset.counts.num_keyframes_read
            assert clips_of(loader) == clips_of(expected)
            assert dataset.counts.num_keyframes_read > before
            assert len(multiprocessing.active_children()) == 1
        (only,) = multiprocessing.active_children()
        for _ in loader:  # left early, its worker goes on with the next epoch
            break
        expected.set_epoch(4)
        assert clips_of(loader) == clips_of(expected)
        assert multiprocessing.active_children() == [only]
    finally:
        del loader
    gc.collect()
    assert multiprocessing.active_children() == []


def test_a_plain_loader_with_the_datasets_seed_gives_the_same_clips(fresh: Callable[..., NeuralVideoDataset]) -> None:
    dataset = fresh(sampler=RandomClips(num_frames_per_clip=3), seed=7, return_info=True)
    loader = NeuralVideoLoader(dataset, 3)
    epochs = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        epochs.append(clips_of(loader))
        assert epochs[-1] == clips_of(DataLoader(dataset, 3))
    assert epochs[0] != epochs[1] != epochs[2]


@forks
@pytest.mark.parametrize("way", [{"prefetch": 2}, FORK], ids=["ahead", "workers"])
def test_without_a_seed_torchs_generator_decides(random_clips: NeuralVideoDataset, way: dict[str, Any]) -> None:
    def two_epochs(seed: int, **options: Any) -> list[Any]:
        torch.manual_seed(seed)
        loader = NeuralVideoLoader(random_clips, 2, shuffle=True, **options)
        return [clips_of(loader) for _ in range(2)]

    assert two_epochs(0) == two_epochs(0, **way)
    assert two_epochs(0) != two_epochs(1)
    first, second = two_epochs(0)
    assert first != second


def test_the_loaders_generator(random_clips: NeuralVideoDataset) -> None:
    def epoch(seed: int) -> list[Any]:
        generator = torch.Generator().manual_seed(seed)
        return clips_of(NeuralVideoLoader(random_clips, 2, shuffle=True, generator=generator))

    before = torch.get_rng_state()
    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_begins_with_its_first_batch(random_clips: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(random_clips, 1, shuffle=True, seed=2)
    iter(loader)
    iter(loader)
    assert loader.state_dict()["epoch"] == 0
    assert clips_of(loader) == clips_of(NeuralVideoLoader(random_clips, 1, shuffle=True, seed=2))
    assert loader.state_dict() == {"epoch": 1, "batches_done": 0, "seed": None}


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"pad": False}], ids=str)
def test_ranks_get_equally_many_batches(dataset: NeuralVideoDataset, num_ranks: int, options: dict[str, Any]) -> None:
    loaders = [
        NeuralVideoLoader(dataset, 2, shuffle=True, seed=1, rank=rank, num_replicas=num_ranks, **options)
        for rank in range(num_ranks)
    ]
    shares = [clips_of(loader) for loader in loaders]
    assert [len(share) for share in shares] == [len(loader) for loader in loaders]
    assert len({len(loader) for loader in loaders}) == 1
    seen = sorted(clip for share in shares for batch in share for clip in batch)
    everything = sorted(itertools.chain(*clips_of(NeuralVideoLoader(dataset, 4))))
    if options.get("drop_last"):
        assert len(seen) == len(set(seen)) == 11 // num_ranks // 2 * 2 * num_ranks
    elif options.get("pad") is False:
        assert seen == everything
    else:
        assert set(seen) == set(everything)
        assert len(seen) == -(-11 // num_ranks) * num_ranks


def test_clips_that_cannot_be_dealt_out_exactly_once(dataset: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(dataset, 1, rank=1, num_replicas=3, pad=False)
    message = (
        "11 items cannot go to 3 ranks exactly once, in equally many batches of 1; use another batch_size, or pad=True,"
    )
    with pytest.raises(ValueError, match=message):
        len(loader)
    with pytest.raises(ValueError, match=message):
        next(iter(loader))


RANK = """
import json, sys
import torch
from neuralloader import NeuralVideoDataset, NeuralVideoLoader

path, rank, meeting = sys.argv[1:]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
dataset = NeuralVideoDataset(path, device="cpu", step_between_clips=1, return_info=True)
loader = NeuralVideoLoader(dataset, 2, shuffle=True, pad=False)
epochs = []
for _ in range(2):
    clips = [(i["video_index"].tolist(), i["pts_seconds"][:, 0].tolist()) for _, _, i in loader]
    epochs.append(clips)
    torch.distributed.barrier()
print(json.dumps(epochs))
torch.distributed.destroy_process_group()
"""


def test_ranks_of_a_real_process_group(fast_pack: tiny.TinyPack, dataset: NeuralVideoDataset, tmp_path: Path) -> None:
    processes = [run_script(tmp_path, RANK, fast_pack.path, rank, tmp_path / "meeting") for rank in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    everything = sorted((clip[0], clip[2]) for batch in clips_of(NeuralVideoLoader(dataset, 4)) for clip in batch)
    for own, other in zip(first, second, strict=True):
        assert len(own) == len(other) == 3
        assert (
            sorted((v, t) for videos, times in [*own, *other] for v, t in zip(videos, times, strict=True)) == everything
        )
    assert first[0] != first[1]


# --- interruption and resumption ------------------------------------------------------------------------------------


def _through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


def _through_torch(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@forks
@ways
@pytest.mark.parametrize("save", [_through_json, _through_torch])
def test_resuming_in_mid_epoch(random_clips: NeuralVideoDataset, way: dict[str, Any], save: Callable) -> None:
    def loader() -> NeuralVideoLoader:
        return NeuralVideoLoader(random_clips, 1, shuffle=True, **way)

    for batches_done in (1, 3) if way else range(1, 5):  # 4 is all of them
        interrupted = loader()
        list(interrupted)  # an epoch before
        batches = iter(interrupted)
        for _ in range(batches_done):
            next(batches)
        state = save(interrupted.state_dict())
        assert (state["epoch"], state["batches_done"]) == (1, batches_done)
        rest = clips_of(batches)
        assert len(rest) == 4 - batches_done
        resumed = loader()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert clips_of(resumed) == rest
        assert resumed.state_dict() == {"epoch": 2, "batches_done": 0, "seed": None}
        assert len(list(resumed)) == 4


def test_a_state_counts_what_was_handed_out_not_what_is_decoded(random_clips: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(random_clips, 1, seed=1, prefetch=3)
    for number, _ in enumerate(loader, start=1):
        time.sleep(0.02)  # others are decoded meanwhile
        assert loader.state_dict() == {"epoch": 0, "batches_done": number, "seed": 1}


def test_with_a_seed_a_resumed_run_is_the_uninterrupted_one(random_clips: NeuralVideoDataset) -> None:
    def loader() -> NeuralVideoLoader:
        return NeuralVideoLoader(random_clips, 1, shuffle=True, seed=6)

    whole = loader()
    expected = [clips_of(whole) for _ in range(3)]
    interrupted, seen = loader(), []
    for batch in itertools.islice(itertools.chain(interrupted, interrupted), 6):
        seen += clips_of([batch])
    resumed = loader()
    resumed.load_state_dict(interrupted.state_dict())
    for epoch in range(1, 3):
        resumed.set_epoch(epoch)  # as a training loop says at the head of each
        seen += clips_of(resumed)
    assert seen == list(itertools.chain(*expected))


def test_set_epoch_begins_another_epoch_from_its_start(random_clips: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(random_clips, 1, shuffle=True, seed=6)
    first, second = clips_of(loader), clips_of(loader)
    loader.load_state_dict({"epoch": 0, "batches_done": 2, "seed": 6})
    loader.set_epoch(1)
    assert loader.state_dict() == {"epoch": 1, "batches_done": 0, "seed": None}
    assert clips_of(loader) == second
    loader.set_epoch(0)
    for _ in loader:
        break
    loader.set_epoch(0)  # the epoch that was left early, again
    assert clips_of(loader) == first


def test_no_state(random_clips: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(random_clips, 1)
    with pytest.raises(ValueError, match="a loader's state has epoch, batches_done and seed, not epoch, step"):
        loader.load_state_dict({"epoch": 1, "step": 2})


def test_a_sampler_of_ones_own_is_asked_again(dataset: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(dataset, 2, sampler=[9, 1, 4, 4, 0])
    whole = clips_of(loader)
    loader.load_state_dict({"epoch": 0, "batches_done": 1, "seed": 0})
    assert clips_of(loader) == whole[1:]
