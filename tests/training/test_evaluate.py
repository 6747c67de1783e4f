"""Evaluations in the middle of a training: on a fixed sample, of what a reader would get from the network as it is."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor
from training_case import CPU, SIZE, make_data, make_dnerv, make_hnerv, make_video_data

from neuralloader.backends import Backend, FastNeRV, FastNeRVConfig
from neuralloader.backends.stacked import get_network, set_network, stack_networks
from neuralloader.training import evaluate as module
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.evaluate import Evaluation, choose_sample, evaluate
from neuralloader.training.group import Group
from neuralloader.training.offsets import LatentOffsets
from neuralloader.training.rounding import round_in_place


def _all(data: TrainingSet) -> list[np.ndarray]:
    return [np.arange(len(data.units))]


# --- the sample -----------------------------------------------------------------------------------------------------


def test_a_small_corpus_is_evaluated_whole() -> None:
    data = make_data()
    sample = choose_sample(data)
    assert np.concatenate(sample).tolist() == list(range(24))


def test_of_a_large_one_a_sample_is_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_FRAMES", 20)
    monkeypatch.setattr(module, "FRAMES_PER_STEP", 8)
    data = make_data(lengths=np.array([100]))
    sample = choose_sample(data)
    assert [len(rows) for rows in sample] == [7, 7, 6]
    chosen = np.concatenate(sample)
    assert (chosen[0], chosen[-1], len(chosen)) == (0, 99, 20)
    assert set(np.diff(chosen)) <= {5, 6}
    clips = choose_sample(make_data(8, lengths=np.array([100])))
    assert np.concatenate(clips).tolist() == [0, 12], "clips count with all their frames"
    assert [len(rows) for rows in clips] == [1, 1]


def test_frames_held_out_are_not_in_it() -> None:
    held_out = np.zeros(24, bool)
    held_out[[2, 7, 23]] = True
    assert set(np.concatenate(choose_sample(make_data(held_out=held_out))).tolist()) == set(range(24)) - {2, 7, 23}


def test_of_a_stack_each_video_has_as_many_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNITS_PER_VIDEO", 5)
    data = make_video_data(np.array([30, 1, 4]))  # rows 0 to 29, 30, 31 to 34
    sample = choose_sample(data, np.array([2, 0]), units_per_step=3)
    first, second = (rows.reshape(2, 3).tolist() for rows in sample)
    assert first == [[31, 32, 32], [0, 6, 12]]
    assert second == [[33, 33, 34], [17, 23, 29]]
    few = choose_sample(data, np.array([1]), 2)
    assert [rows.tolist() for rows in few] == [[30, 30]] * 3


# --- what is measured -----------------------------------------------------------------------------------------------


@torch.no_grad()
def _shaken() -> Backend:
    """A network in which latents matter; in an untrained one they do not yet."""
    backend, chance = make_dnerv(), torch.Generator().manual_seed(1)
    for p in backend.parameters():
        p += 0.1 * torch.randn(p.shape, generator=chance)
    return backend


@torch.no_grad()
def _by_hand(backend: Backend, data: TrainingSet, offsets: Tensor | None = None) -> tuple[float, Tensor]:
    """PSNR of all frames and their rounded latents, with the weights as they are."""
    backend.eval()
    batch = data.unit_batch(np.arange(len(data.units)))
    latents = None
    if backend.latent_shape is not None:
        latents = backend.encode_latents(batch.frames, batch.keyframes, batch.units).float()
        latents = latents if offsets is None else latents + offsets
        latents = latents.round() * batch.has_latent.view(-1, 1, 1, 1)
    predicted = backend.decode(backend.encode_keyframes(batch.keyframes), batch.units, latents)
    shown = (predicted.float().clamp(0, 1) * 255).round().flatten(0, 1).double()
    mse = (shown - batch.frames.flatten(0, 1).double()).square().flatten(1).mean(dim=1) / 255**2
    kept = torch.zeros(0) if latents is None else latents[batch.has_latent]
    return float((-10 * torch.log10(mse + 1e-6)).mean()), kept


@pytest.mark.parametrize("bits", [3, 8])
def test_it_is_what_a_reader_would_get(bits: int) -> None:
    backend, data = make_dnerv(), make_data()
    before = {name: p.detach().clone() for name, p in backend.named_parameters()}
    backend.train()
    result = evaluate(backend, data, _all(data), bits)
    assert backend.training
    for name, p in backend.named_parameters():
        assert torch.equal(p, before[name]), "weights are exact again"
    round_in_place(backend, bits)
    psnr, _ = _by_hand(backend, data)
    assert result.psnr_db == pytest.approx(psnr, abs=0.05)  # by hand in float32
    other = evaluate(make_dnerv(), data, _all(data), 8 if bits == 3 else 3)
    assert other.psnr_db != pytest.approx(result.psnr_db, abs=0.05)


def test_offsets_are_added_before_rounding() -> None:
    backend, data = _shaken(), make_data()
    assert backend.latent_shape is not None
    offsets = LatentOffsets(len(data.table) - len(data.table.keys), backend.latent_shape, CPU)
    offsets.values += 3 * torch.randn(offsets.values.shape, generator=torch.Generator().manual_seed(0))
    plain, moved = (evaluate(backend, data, _all(data), 8, added) for added in (None, offsets))
    round_in_place(backend, 8)
    psnr, _ = _by_hand(backend, data, offsets.at(offsets.rows(data, np.arange(len(data.units)))))
    assert moved.psnr_db == pytest.approx(psnr, abs=0.05)
    assert moved.psnr_db != pytest.approx(plain.psnr_db, abs=0.05)
    assert moved.latent_bits > plain.latent_bits
    assert moved.coded_latent_bits > plain.coded_latent_bits


def test_coded_bits_are_the_entropy_of_each_channel() -> None:
    backend, data = _shaken(), make_data(lengths=np.array([60]))
    result = evaluate(backend, data, _all(data), 8)
    round_in_place(backend, 8)
    _, latents = _by_hand(backend, data)
    symbols = latents.transpose(0, 1).flatten(1).numpy().astype(np.int64)
    assert len(np.unique(symbols)) > 2
    entropy = 0.0
    for channel in symbols:
        share = np.unique(channel, return_counts=True)[1] / len(channel)
        entropy -= len(channel) * float((share * np.log2(share)).sum())
    assert result.coded_latent_bits * len(data.units) == pytest.approx(entropy, rel=0.02)


def test_symbols_are_counted_for_each_channel() -> None:
    latents = torch.tensor([[[[0.0, 1.0]], [[-1.0, -1.0]]], [[[0.0, 500.0]], [[-500.0, float("nan")]]]])
    counts = module._count_symbols(latents)
    assert counts.shape == (2, 2 * module.MAX_SYMBOL + 1)
    middle = module.MAX_SYMBOL
    assert {place: int(counts[0, place]) for place in counts[0].nonzero().flatten().tolist()} == {
        middle: 2,
        middle + 1: 1,
        2 * middle: 1,
    }
    assert counts[1, [0, middle - 1, middle]].tolist() == [1, 2, 1]
    assert counts.sum() == 8


@pytest.mark.parametrize(
    ("counts", "bits"), [([[4, 4]], 8), ([[8, 0]], 0), ([[1, 1, 1, 1], [0, 0, 0, 0], [2, 0, 2, 0]], 12), ([[]], 0)]
)
def test_entropy(counts: list[list[int]], bits: float) -> None:
    assert module._entropy_bits(torch.tensor(counts, dtype=torch.float32)) == pytest.approx(bits)


def test_without_latents_there_are_no_bits() -> None:
    torch.manual_seed(0)
    data = make_video_data(np.array([5]))
    result = evaluate(FastNeRV(FastNeRVConfig(SIZE, 8, stem_width=16)), data, _all(data), 8)
    assert 5 < result.psnr_db < 20
    assert (result.latent_bits, result.coded_latent_bits) == (0, 0)


def test_several_steps_and_processes_are_the_mean_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of unequal parts, each frame counts the same; here the processes come one after the other."""
    backend, data = make_dnerv(), make_data()
    whole = evaluate(backend, data, _all(data), 8)
    rows = _all(data)[0]
    parts = [rows[:3], rows[3:17], rows[17:]]
    assert astuple(evaluate(backend, data, parts, 8)) == pytest.approx(astuple(whole), rel=0.01)

    sums: list[list[float]] = []
    counts: list[Tensor] = []
    monkeypatch.setattr(Group, "sum", lambda self, values: sums.append(list(values)) or list(values))
    monkeypatch.setattr(Group, "sum_tensor", lambda self, tensor: counts.append(tensor) or tensor)
    for rank in range(2):
        evaluate(backend, data, parts, 8, group=Group(rank, 2))
    assert [own[1] for own in sums] == [3 + 7, 14], "frames of each"
    together = np.sum(sums, axis=0).tolist()
    monkeypatch.setattr(Group, "sum", lambda self, values: together)
    monkeypatch.setattr(Group, "sum_tensor", lambda self, tensor: torch.stack(counts).sum(dim=0))
    assert astuple(evaluate(backend, data, parts, 8, group=Group(1, 2))) == pytest.approx(astuple(whole), rel=0.01)


def test_a_stack_is_measured_as_its_networks_are() -> None:
    torch.manual_seed(0)
    data = make_video_data(np.array([4, 4]))
    networks = [make_hnerv(), make_hnerv()]
    stack = stack_networks(networks[0], 2)
    for row, network in enumerate(networks):
        set_network(stack, row, network)
    result = evaluate(stack, data, choose_sample(data, np.array([0, 1]), 2), 6)
    alone = []
    for row in range(2):
        network = make_hnerv()
        get_network(stack, row, network)
        alone.append(evaluate(network, data, [np.arange(4 * row, 4 * row + 4)] * 4, 6))
    assert result.psnr_db == pytest.approx(np.mean([each.psnr_db for each in alone]), abs=0.3)
    assert result.latent_bits == pytest.approx(np.mean([each.latent_bits for each in alone]), rel=0.1)


def test_numbers_that_are_none_are_told_as_such() -> None:
    backend, data = make_dnerv(), make_data()
    with torch.no_grad():
        next(p for name, p in backend.named_parameters() if backend.is_stored(name) and p.dim() > 1).fill_(float("nan"))
    result = evaluate(backend, data, _all(data), 8)
    assert isinstance(result, Evaluation)
    assert np.isnan(result.psnr_db)
