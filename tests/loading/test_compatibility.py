"""The dataset among PyTorch's own things: loaders, samplers, wrappers, and other libraries' loaders and trainers."""

import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

from neuralloader import NeuralVideoDataset, NeuralVideoLoader
from neuralloader.loading.concat import ConcatNeuralDataset
from neuralloader.loading.samplers import RandomClips

NUM_ITEMS = 11
Context = Literal["fork", "spawn", "forkserver"]
# Python 3.12 warns about every fork of a process with threads, and PyTorch has some
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
# of torchdata 0.11 with torch 2.14
stateful = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


@pytest.fixture
def dataset(fast_pack: tiny.TinyPack) -> NeuralVideoDataset:
    """11 items: windows of 8 frames at every frame."""
    return NeuralVideoDataset(fast_pack.path, device="cpu", step_between_clips=1, return_info=True)


@pytest.fixture
def random_clips(fast_pack: tiny.TinyPack) -> NeuralVideoDataset:
    """3 frames of each of the 4 videos, at random places, the same for the same epoch."""
    sampler = RandomClips(num_frames_per_clip=3)
    return NeuralVideoDataset(fast_pack.path, device="cpu", sampler=sampler, seed=5, return_info=True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What ``__getitems__`` is asked for."""
    asked: list[list[int]] = []
    original = NeuralVideoDataset.__getitems__

    def getitems(self: NeuralVideoDataset, indices: Any) -> list[Any]:
        asked.append(list(indices))
        return original(self, indices)

    monkeypatch.setattr(NeuralVideoDataset, "__getitems__", getitems)
    return asked


def _same_videos(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and int((a.short() - b.short()).abs().max()) <= 1


def _first_frames(batches: Any) -> list[list[tuple[int, float]]]:
    """(video, time of the first frame) of each item of each batch."""
    return [
        list(zip(info["video_index"].tolist(), info["pts_seconds"][:, 0].tolist(), strict=True)) for *_, info in batches
    ]


# --- a plain DataLoader ---------------------------------------------------------------------------------------------


@forks
@pytest.mark.parametrize(("num_workers", "context"), [(0, None), (2, "fork"), (2, "spawn"), (2, "forkserver")], ids=str)
def test_workers_of_every_kind_and_set_epoch(
    random_clips: NeuralVideoDataset, num_workers: int, context: Context | None
) -> None:
    """The same clips, and the same pixels; workers that live on are told of a new epoch."""
    expected = []
    for epoch in range(3):
        random_clips.set_epoch(epoch)
        expected.append(random_clips.__getitems__(range(4)))
    random_clips.set_epoch(0)
    loader = DataLoader(
        random_clips,
        batch_size=3,
        num_workers=num_workers,
        multiprocessing_context=context,
        persistent_workers=num_workers > 0,
    )
    for epoch in range(3):
        random_clips.set_epoch(epoch)
        videos, labels, infos = zip(*loader, strict=True)
        times = torch.cat([info["pts_seconds"] for info in infos])
        assert torch.equal(times, torch.stack([info["pts_seconds"] for _, _, info in expected[epoch]]))
        assert _same_videos(torch.cat(videos), torch.stack([video for video, _, _ in expected[epoch]]))
        assert torch.cat(labels).tolist() == random_clips.targets
    clips = {str([info["pts_seconds"].tolist() for _, _, info in epoch]) for epoch in expected}
    assert len(clips) == 3


def test_a_copy_has_an_epoch_of_its_own(random_clips: NeuralVideoDataset) -> None:
    twin = pickle.loads(pickle.dumps(random_clips))
    first = [info["pts_seconds"].tolist() for _, _, info in random_clips.__getitems__(range(4))]
    random_clips.set_epoch(1)
    assert [info["pts_seconds"].tolist() for _, _, info in twin.__getitems__(range(4))] == first
    assert [info["pts_seconds"].tolist() for _, _, info in random_clips.__getitems__(range(4))] != first


@pytest.mark.parametrize(
    "sampler",
    [
        lambda dataset: RandomSampler(dataset, replacement=True, num_samples=9),
        lambda dataset: WeightedRandomSampler([0.0, 1.0, *[0.0] * 9], 5),
        lambda dataset: DistributedSampler(dataset, num_replicas=2, rank=1, shuffle=True),
    ],
    ids=["random", "weighted", "distributed"],
)
def test_samplers(dataset: NeuralVideoDataset, sampler: Callable[[Any], Any], calls: list[list[int]]) -> None:
    chosen = sampler(dataset)
    torch.manual_seed(0)
    loader = DataLoader(dataset, batch_size=4, sampler=chosen)
    plain = _first_frames(loader)
    assert [len(call) for call in calls] == [len(batch) for batch in plain]
    assert sum(map(len, plain)) == len(chosen)
    torch.manual_seed(0)
    torch.empty((), dtype=torch.int64).random_()  # what a DataLoader draws first
    assert _first_frames(NeuralVideoLoader(dataset, 4, sampler=chosen, seed=0)) == plain


@pytest.mark.parametrize("drop_last", [False, True])
def test_distributed_sampler_parts_the_items(dataset: NeuralVideoDataset, drop_last: bool) -> None:
    shares = []
    for rank in range(3):
        sampler: DistributedSampler = DistributedSampler(dataset, 3, rank, shuffle=True, drop_last=drop_last)
        sampler.set_epoch(2)
        plain = _first_frames(DataLoader(dataset, 2, sampler=sampler))
        assert _first_frames(NeuralVideoLoader(dataset, 2, sampler=sampler)) == plain  # and is not parted again
        shares.append([item for batch in plain for item in batch])
    assert [len(share) for share in shares] == [3 if drop_last else 4] * 3
    assert len(set(itertools.chain(*shares))) == (9 if drop_last else NUM_ITEMS)


def test_whole_batches_from_a_sampler(dataset: NeuralVideoDataset, calls: list[list[int]]) -> None:
    batches = BatchSampler(SequentialSampler(dataset), 4, drop_last=False)
    by_sampler = list(DataLoader(dataset, batch_size=None, sampler=batches))
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    by_batch_sampler = list(DataLoader(dataset, batch_sampler=batches))
    for (videos, labels, info), (own, own_labels, own_info) in zip(by_sampler, by_batch_sampler, strict=True):
        assert torch.equal(videos, own)
        assert torch.equal(labels, own_labels)
        assert torch.equal(info["pts_seconds"], own_info["pts_seconds"])


@pytest.mark.parametrize("index", [[0, 2], (0, 2), range(0, 3, 2), np.array([0, 2]), torch.tensor([0, -9])], ids=str)
def test_a_list_as_index_gives_a_batch(dataset: NeuralVideoDataset, index: Any, calls: list[list[int]]) -> None:
    videos, labels, info = dataset[index]
    assert len(calls) == 1
    assert videos.shape == (2, 8, 3, *tiny.SIZE)
    assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 1])
    assert info["video_index"].tolist() == [0, 2]
    expected, _, _ = default_collate([dataset[0], dataset[2]])
    assert _same_videos(videos, expected)


def test_what_lists_must_not_hold(dataset: NeuralVideoDataset) -> None:
    with pytest.raises(IndexError, match="index 11 is out of range: the dataset has 11 items"):
        dataset[[0, 11]]
    with pytest.raises(ValueError, match=r"a batch of no items has no shape; for a list of none, call __getitems__"):
        dataset[[]]
    with pytest.raises(TypeError, match=r"an index is a whole number, not a bool; a mask's are mask\.nonzero\(\)"):
        dataset[torch.ones(NUM_ITEMS, dtype=torch.bool)]  # type: ignore[index]
    for index in ([0.0, 1.0], np.ones(NUM_ITEMS, bool), [[0, 1]], np.zeros((1, 2), int)):
        with pytest.raises(TypeError):
            dataset[index]  # type: ignore[index]


def test_pin_memory_without_an_accelerator(dataset: NeuralVideoDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="no accelerator is found"):
        videos, *_ = next(iter(DataLoader(dataset, batch_size=2, pin_memory=True)))
    assert not videos.is_pinned()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pin_memory(dataset: NeuralVideoDataset) -> None:
    for loader in (DataLoader(dataset, 2, pin_memory=True), NeuralVideoLoader(dataset, 2, pin_memory=True)):
        videos, labels, info = next(iter(loader))
        assert videos.is_pinned()
        assert labels.is_pinned()
        assert info["pts_seconds"].is_pinned()


def test_a_worker_decodes_with_one_thread_and_keeps_it_so(random_clips: NeuralVideoDataset) -> None:
    before = torch.get_num_threads()
    list(DataLoader(random_clips, batch_size=2))
    list(NeuralVideoLoader(random_clips, 2, prefetch=1))
    assert torch.get_num_threads() == before


def test_decoding_draws_no_random_numbers(every_pack: tiny.TinyPack) -> None:
    """Whatever is loaded, a model beside it is trained with the same numbers."""
    before = torch.get_rng_state()
    dataset = NeuralVideoDataset(every_pack.path, device="cpu")
    dataset.__getitems__([0, 1])
    assert torch.equal(torch.get_rng_state(), before)


# --- wrappers -------------------------------------------------------------------------------------------------------


def test_subsets_keep_batches_together(dataset: NeuralVideoDataset, calls: list[list[int]]) -> None:
    subset = Subset(dataset, [10, 0, 5, 3])
    nested = Subset(subset, [3, 0, 1])
    batches = list(DataLoader(nested, batch_size=2))
    assert calls == [[3, 10], [0]]
    assert _first_frames(batches) == [[(2, 0.1), (3, 0.1)], [(0, 0.0)]]
    assert nested[1][2]["video_index"] == 3


def test_random_split_parts_the_items(dataset: NeuralVideoDataset, calls: list[list[int]]) -> None:
    parts = random_split(dataset, [0.5, 0.25, 0.25], torch.Generator().manual_seed(0))
    frames = [batch for part in parts for batch in _first_frames(DataLoader(part, batch_size=NUM_ITEMS))]
    assert [len(call) for call in calls] == [6, 3, 2]
    everything = _first_frames(DataLoader(dataset, batch_size=4))
    assert sorted(itertools.chain(*frames)) == sorted(itertools.chain(*everything))


def test_stacked_datasets(dataset: NeuralVideoDataset, paper_pack: tiny.TinyPack, calls: list[list[int]]) -> None:
    other = NeuralVideoDataset(paper_pack.path, device="cpu", step_between_clips=1)
    stack = StackDataset(dataset, other)
    (videos, labels, _), (others, other_labels) = next(iter(DataLoader(stack, batch_size=4)))
    assert calls == [[0, 1, 2, 3]] * 2
    assert videos.shape == others.shape
    assert labels.tolist() == other_labels.tolist()
    named = StackDataset(video=dataset, twin=dataset)
    batch = next(iter(DataLoader(named, batch_size=3)))
    assert torch.equal(batch["video"][0], batch["twin"][0])


@pytest.mark.parametrize("kind", [ConcatDataset, ConcatNeuralDataset])
def test_concatenations(
    kind: type[ConcatDataset], dataset: NeuralVideoDataset, paper_pack: tiny.TinyPack, calls: list[list[int]]
) -> None:
    """torch's own fetches items one by one; ours asks each dataset once for a batch."""
    other = NeuralVideoDataset(paper_pack.path, device="cpu", return_info=True)
    whole = kind([dataset, other, dataset])
    assert len(whole) == 2 * NUM_ITEMS + 6
    order = [12, 0, 27, 11, 3, 12]
    ((videos, labels, info),) = DataLoader(whole, batch_size=6, sampler=order)
    if kind is ConcatNeuralDataset:
        assert calls == [[0, 3], [1, 0, 1], [10]]
    else:
        assert calls == [[1], [0], [10], [0], [3], [1]]
    parts = [other[1], dataset[0], dataset[10], other[0], dataset[3], other[1]]
    assert info["video_index"].tolist() == [part[2]["video_index"] for part in parts]
    assert labels.tolist() == [part[1] for part in parts]
    assert _same_videos(videos, torch.stack([part[0] for part in parts]))


@forks
def test_a_concatenation_in_workers_and_subsets(dataset: NeuralVideoDataset) -> None:
    whole = Subset(ConcatNeuralDataset([dataset, dataset]), [13, 2, -1 + 2 * NUM_ITEMS, 0])
    expected = _first_frames(DataLoader(whole, batch_size=3))
    loader = DataLoader(whole, batch_size=3, num_workers=2, multiprocessing_context="fork")
    assert _first_frames(loader) == expected == [[(2, 0.0), (2, 0.0), (3, 0.1)], [(0, 0.0)]]


def test_wrapped_by_a_dataset_of_ones_own(dataset: NeuralVideoDataset) -> None:
    class Pairs(Dataset):
        def __len__(self) -> int:
            return len(dataset) // 2

        def __getitem__(self, index: int) -> Any:
            return dataset[[2 * index, 2 * index + 1]][0]

    assert next(iter(DataLoader(Pairs(), batch_size=2))).shape == (2, 2, 8, 3, *tiny.SIZE)


# --- other libraries ------------------------------------------------------------------------------------------------


@forks
@stateful
@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchdatas_stateful_loader(random_clips: NeuralVideoDataset, num_workers: int) -> None:
    """Saved in mid-epoch and resumed in another loader."""
    stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")
    many = Subset(random_clips, [3, 1, 0, 2, 2, 3])

    def loader() -> Any:
        context = {"multiprocessing_context": "fork"} if num_workers else {}
        return stateful_dataloader.StatefulDataLoader(many, batch_size=1, num_workers=num_workers, **context)

    whole = _first_frames(DataLoader(many, batch_size=1))
    interrupted = loader()
    batches: Iterator[Any] = iter(interrupted)
    seen = _first_frames([next(batches) for _ in range(2)])
    state = pickle.loads(pickle.dumps(interrupted.state_dict()))
    assert _first_frames(batches) == whole[2:]
    resumed = loader()
    resumed.load_state_dict(state)
    assert seen + _first_frames(resumed) == whole
    assert _first_frames(resumed) == whole  # the next epoch is whole again


@pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec|GPU available|number of training batches|litlogger)")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_lightnings_trainer(random_clips: NeuralVideoDataset, tmp_path: Any, prefetch: int) -> None:
    """Trained over epochs; stopped in mid-epoch, its checkpoint holds where the loader was."""
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)
            self.seen: list[Any] = []

        def training_step(self, batch: Any, _: int) -> Tensor:
            videos, labels, info = batch
            self.seen.append((self.current_epoch, info["pts_seconds"].tolist()))
            return torch.nn.functional.cross_entropy(self.layer(videos.float().mean((1, 3, 4)) / 255), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-3)

    class StopAt(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")
                trainer.should_stop = True

    def fit(*callbacks: Any, **options: Any) -> list[Any]:
        model = Model()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            min_epochs=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            callbacks=list(callbacks),
        )
        loader = NeuralVideoLoader(random_clips, 1, shuffle=True, prefetch=prefetch)
        trainer.fit(model, loader, **options)
        return model.seen

    whole = fit()
    assert [epoch for epoch, _ in whole] == [0] * 4 + [1] * 4
    loader = NeuralVideoLoader(random_clips, 1, shuffle=True)
    assert [times for _, times in whole] == [info["pts_seconds"].tolist() for _ in range(2) for *_, info in loader]
    seen = fit(StopAt())
    assert seen == whole[:6]
    assert fit(ckpt_path=tmp_path / "stopped.ckpt", weights_only=False) == whole[6:]
