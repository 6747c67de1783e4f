"""A training that is interrupted and goes on is the one that was not: weights, offsets and log, to the bit."""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_case import SIZE, make_data, make_dnerv, make_hnerv, make_video_data

from neuralloader.backends import FastDNeRV, network_of
from neuralloader.training import fit as fit_module
from neuralloader.training import videos as videos_module
from neuralloader.training.augment import Change
from neuralloader.training.batch_loss import BatchLoss
from neuralloader.training.checkpoint import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from neuralloader.training.clock import Duration
from neuralloader.training.evaluate import Evaluation
from neuralloader.training.fit import Fitted, Progress, TrainingDiverged, fit
from neuralloader.training.keeper import Interrupted, Keeper
from neuralloader.training.recipes import FAST, FAST_FRAMES, Recipe
from neuralloader.training.videos import fit_videos

# everything that has a state: rounding, offsets, Muon and AdamW, a schedule
RECIPE = replace(FAST, rounding_share=0.4, offset_share=0.6)
PLAIN = replace(FAST, rounding_share=0.0, offset_share=0.0, matrix_learning_rate=None)
CHANGES: tuple[Change, ...] = ("mirror", "reverse", "shift")
LENGTHS = np.array([9, 1, 5])  # 4 clips, of which a step has one


@dataclass
class Run:
    """One training in as many parts as it takes.

    Attributes:
        folder: where the checkpoint lies; None keeps none.
        stop_after: steps after which each part is stopped; the last one is not.
        starts: parts so far.
        log: the lines of all parts.
        steps: that each part began with.
    """

    folder: Path | None
    stop_after: tuple[int, ...] = ()
    starts: int = 0
    log: list[Mapping[str, Any]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def keeper(self, number: int = 0, *, every_seconds: float = 1e9) -> Keeper:
        path = None if self.folder is None else self.folder / f"checkpoint-{number}"
        return Keeper(path, every_seconds=every_seconds, log=self.log.append)

    def part(self) -> Callable[[Progress], None]:
        """Begins a part; gives what to call after each of its steps."""
        stop_after = self.stop_after[self.starts] if self.starts < len(self.stop_after) else None
        self.starts += 1
        done = [0]

        def count(progress: Progress) -> None:
            if not done[0]:
                self.steps.append(progress.step)
            done[0] += 1
            if done[0] == stop_after:
                signal.raise_signal(signal.SIGTERM)

        return count

    def go(self, train: Callable[[], Any]) -> Any:
        """Train until it is not interrupted any more."""
        for _ in self.stop_after:
            with pytest.raises(Interrupted, match="the training so far is kept, and the same command goes on from"):
                train()
        return train()

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """The lines about these, without the time."""
        lines = [line for line in self.log if "event" not in line]
        return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def _fit(run: Run, recipe: Recipe = RECIPE, *, epochs: int = 3) -> tuple[Fitted, dict[str, Tensor]]:
    """Each part with a network that knows nothing of those before."""
    data = make_data(lengths=LENGTHS)

    def train() -> tuple[Fitted, dict[str, Tensor]]:
        backend = make_dnerv(seed=run.starts)
        fitted = fit(
            backend,
            data,
            recipe,
            Duration(epochs=epochs),
            seed=5,
            weight_bits=6,
            on_progress=run.part(),
            changes=CHANGES,
            keeper=run.keeper(),
        )
        return fitted, {name: p.detach().clone() for name, p in backend.named_parameters()}

    return run.go(train)


def _assert_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


@pytest.fixture(scope="module")
def whole() -> tuple[Run, Fitted, dict[str, Tensor]]:
    """The training that nobody stops, and no keeper looks after."""
    run = Run(None)
    return run, *_fit(run)


@pytest.mark.parametrize("stop_after", [(1,), (11,), (2, 3, 1, 1, 4)])
def test_the_same_to_the_bit(
    stop_after: tuple[int, ...], whole: tuple[Run, Fitted, dict[str, Tensor]], tmp_path: Path
) -> None:
    run = Run(tmp_path, stop_after)
    fitted, weights = _fit(run)
    expected_run, expected, expected_weights = whole
    _assert_same(weights, expected_weights)
    assert fitted.offsets is not None
    assert expected.offsets is not None
    assert expected.offsets.values.any()
    assert torch.equal(fitted.offsets.values, expected.offsets.values)
    assert fitted.steps == expected.steps == 12
    assert run.evaluations == expected_run.evaluations
    assert [line["step"] for line in run.evaluations] == list(range(1, 13))
    assert run.steps == np.cumsum([1, *stop_after]).tolist(), "no step is done twice"
    resumed = [line for line in run.log if line.get("event") == "resumed"]
    assert [line["step"] for line in resumed] == np.cumsum(stop_after).tolist()


def test_a_checkpoint_at_every_step_changes_nothing(
    whole: tuple[Run, Fitted, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Keeper, "is_due", lambda self: True)
    run = Run(tmp_path)
    _, weights = _fit(run)
    _assert_same(weights, whole[2])
    assert run.evaluations == whole[0].evaluations


def test_killed_it_goes_on_from_the_last_checkpoint(
    whole: tuple[Run, Fitted, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SIGKILL leaves is what was there: here, the checkpoint after step 3 of a training that came to step 5."""
    written = 0

    def is_due(self: Keeper) -> bool:
        nonlocal written
        written += 1
        return written == 3

    monkeypatch.setattr(Keeper, "is_due", is_due)
    run = Run(tmp_path, (5,))
    original = Keeper.write

    class Killed(Exception):
        """Nothing more is written."""

    def write(self: Keeper, checkpoint: Checkpoint) -> None:
        if run.starts == 1 and checkpoint.numbers["steps"] > 3:
            raise Killed
        original(self, checkpoint)

    monkeypatch.setattr(Keeper, "write", write)
    with pytest.raises(Killed):
        _fit(run)
    run.stop_after = ()
    _, weights = _fit(run)
    assert run.steps == [1, 4]
    _assert_same(weights, whole[2])


def test_plain_adamw_with_few_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "NUM_EVALUATIONS", 2)
    run, expected = Run(tmp_path, (3, 2, 1)), Run(None)
    (_, weights), (fitted, expected_weights) = _fit(run, PLAIN, epochs=2), _fit(expected, PLAIN, epochs=2)
    _assert_same(weights, expected_weights)
    assert run.evaluations == expected.evaluations
    assert [line["step"] for line in run.evaluations] == [4, 8]
    assert fitted.offsets is None


def test_an_earlier_network_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, dict[str, Tensor]] = {}

    def measure(self: Any, done: float) -> Evaluation:
        seen[self.clock.steps] = {name: p.detach().clone() for name, p in self.backend.named_parameters()}
        return Evaluation(40.0 if self.clock.steps == 3 else 30.0, 0.0, 0.0)

    monkeypatch.setattr(fit_module._Training, "_measure", measure)
    fitted, weights = _fit(Run(tmp_path, (5, 4)))
    _assert_same(weights, seen[3])
    assert any(not torch.equal(tensor, seen[12][name]) for name, tensor in weights.items())
    assert fitted.offsets is not None
    assert not fitted.offsets.values.any(), "there were none yet"


def test_bad_steps_in_a_row_are_counted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = fit_module.batch_loss, [0]

    def broken_from_the_fourth_on(*arguments: Any, **named: Any) -> BatchLoss:
        calls[0] += 1
        got = original(*arguments, **named)
        return got._replace(loss=got.loss * float("nan")) if calls[0] > 3 else got

    monkeypatch.setattr(fit_module, "batch_loss", broken_from_the_fourth_on)
    with pytest.raises(TrainingDiverged, match=r"after 22 steps: 20 losses in a row were not finite"):
        _fit(Run(tmp_path, (10, 6)), PLAIN, epochs=10)


def test_by_minutes_the_time_before_counts_and_the_time_between_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    done: list[float] = []

    def train(stop_at: int | None) -> Fitted:
        def tick(progress: Progress) -> None:
            done.append(progress.done)
            now[0] += 6
            if progress.step == stop_at:
                signal.raise_signal(signal.SIGINT)

        keeper = Keeper(tmp_path / "checkpoint-0", every_seconds=1e9)
        return fit(
            make_dnerv(),
            make_data(lengths=LENGTHS),
            PLAIN,
            Duration(minutes=1),
            seed=0,
            weight_bits=6,
            on_progress=tick,
            keeper=keeper,
        )

    with pytest.raises(Interrupted):
        train(3)
    now[0] += 1e5
    with pytest.raises(Interrupted):
        train(4)
    now[0] += 1e5
    fitted = train(None)
    assert (fitted.steps, fitted.seconds) == (10, pytest.approx(60))
    assert done == pytest.approx([i / 10 for i in range(10)])


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    fitted, weights = _fit(run, epochs=1)
    before, num_lines = (tmp_path / "checkpoint-0").read_bytes(), len(run.log)
    again, same = _fit(run, epochs=1)
    _assert_same(weights, same)
    assert again.steps == fitted.steps == 4
    assert again.offsets is not None
    assert fitted.offsets is not None
    assert torch.equal(again.offsets.values, fitted.offsets.values)
    assert (tmp_path / "checkpoint-0").read_bytes() == before
    assert len(run.log) == num_lines
    assert run.steps == [1]


def test_a_signal_in_the_last_step_ends_the_run_and_the_training_is_kept(tmp_path: Path) -> None:
    """It is seen before the last evaluation; what goes on from there only evaluates."""
    run = Run(tmp_path, (4,))
    _fit(run, epochs=1)
    assert (run.starts, run.steps) == (2, [1])
    assert run.evaluations[-1]["done"] == 1


def test_a_signal_during_the_last_evaluation_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = fit_module._Training.finish

    def finish(self: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        original(self)

    monkeypatch.setattr(fit_module._Training, "finish", finish)
    run = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt) as caught:
        _fit(run, epochs=1)
    assert not isinstance(caught.value, Interrupted)
    checkpoint = read_checkpoint(tmp_path / "checkpoint-0")
    assert checkpoint is not None
    assert checkpoint.numbers["is_finished"] is True


# --- a network for each video ---------------------------------------------------------------------------------------


def _fit_videos(run: Run) -> tuple[dict[str, Tensor], np.ndarray]:
    data = make_video_data(np.array([6, 1, 4]))

    def train() -> Any:
        torch.manual_seed(run.starts)
        return fit_videos(
            make_hnerv,
            data,
            replace(FAST_FRAMES, frames_per_network=2, rounding_share=0.4),
            Duration(epochs=3),
            seed=2,
            weight_bits=6,
            on_progress=run.part(),
            open_keeper=run.keeper,
        )

    trained = run.go(train)
    assert trained.latents is not None
    assert trained.steps == 3 * 2 + 3 * 3
    return {name: p.detach() for name, p in trained.stack.named_parameters()}, trained.latents


def test_networks_of_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two parts: the videos of 1 and 4 frames, 6 steps; and that of 6, 9 steps."""
    monkeypatch.setattr(videos_module, "_networks_per_step", lambda *arguments: 2)
    expected, expected_latents = _fit_videos(Run(None))
    run = Run(tmp_path, (2, 5, 3))
    weights, latents = _fit_videos(run)
    _assert_same(weights, expected)
    np.testing.assert_array_equal(latents, expected_latents)
    assert run.steps == [1, 3, 8, 11]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-0", "checkpoint-1"}


# --- checkpoints of others ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Of a training in its middle."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.raises(Interrupted):
        _fit_once(folder, Run(folder, (3,)))
    checkpoint = read_checkpoint(folder / "checkpoint-0")
    assert checkpoint is not None
    return checkpoint


def _fit_once(folder: Path, run: Run | None = None, recipe: Recipe = RECIPE, width: int = 16) -> None:
    run = run or Run(folder)
    fit(
        FastDNeRV(network_of("dnerv", "fast", width, SIZE)),
        make_data(lengths=LENGTHS),
        recipe,
        Duration(epochs=1),
        seed=5,
        weight_bits=6,
        on_progress=run.part(),
        keeper=run.keeper(),
    )


def _refusal(folder: Path, checkpoint: Checkpoint, **arguments: Any) -> str:
    write_checkpoint(folder / "checkpoint-0", checkpoint)
    with pytest.raises(CheckpointError) as caught:
        _fit_once(folder, **arguments)
    text = str(caught.value)
    assert text.startswith(f"the checkpoint {folder / 'checkpoint-0'} cannot be used: it")
    assert text.endswith("; start over with --fresh (fresh=True)")
    assert len(text) < 500
    return text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"width": 24}, "tensor best.network.base.bias is (32,) float32, not (48,) float32"),
        ({"recipe": replace(RECIPE, offset_share=0.0)}, "tensor best.offsets belongs to neither"),
        ({"recipe": replace(RECIPE, matrix_learning_rate=None)}, "it has no tensor optimizer.0."),
    ],
)
def test_a_checkpoint_of_another_training(
    kept: Checkpoint, tmp_path: Path, arguments: dict[str, Any], text: str
) -> None:
    assert f"it is of another network or recipe: {text}" in _refusal(tmp_path, kept, **arguments)


@pytest.mark.parametrize("part", ["learned.", "optimizer.0.", "optimizer.1.", "best.", "offsets.", "bad_steps"])
def test_a_checkpoint_that_lacks_a_tensor_or_has_another_in_its_place(
    kept: Checkpoint, tmp_path: Path, part: str
) -> None:
    name = next(name for name in kept.tensors if name.startswith(part))
    without = {other: tensor for other, tensor in kept.tensors.items() if other != name}
    text = _refusal(tmp_path, Checkpoint(without, kept.numbers))
    assert f"it has no tensor {name}" in text
    other = torch.zeros(3, 1, 4, dtype=torch.bfloat16)
    text = _refusal(tmp_path, Checkpoint({**without, name: other}, kept.numbers))
    assert f"tensor {name} is (3, 1, 4) bfloat16, not (" in text


def test_a_checkpoint_with_more_tensors_than_belong_to_it(kept: Checkpoint, tmp_path: Path) -> None:
    tensors = {**kept.tensors, "more": torch.zeros(2)}
    assert "tensor more belongs to neither" in _refusal(tmp_path, Checkpoint(tensors, kept.numbers))


NOTHING: tuple[Any, ...] = (None, "3", [], {}, 10**400, float("nan"), float("inf"))


@pytest.mark.parametrize(
    ("names", "nonsense"),
    [
        (("steps", "evaluations"), (*NOTHING, -1, 0.5, True)),
        (("seconds", "psnr_sum", "psnr_weight", "best_psnr_db", "best_latent_bits"), (*NOTHING, True)),
        (("has_best", "has_reached_target", "is_finished"), (*NOTHING, 1, 0)),
    ],
)
def test_a_checkpoint_whose_numbers_are_nonsense(
    kept: Checkpoint, tmp_path: Path, names: tuple[str, ...], nonsense: tuple[Any, ...]
) -> None:
    for name in names:
        for value in nonsense:
            text = _refusal(tmp_path, Checkpoint(kept.tensors, {**kept.numbers, name: value}))
            assert f"its {name} must be " in text
        numbers = {key: value for key, value in kept.numbers.items() if key != name}
        assert f"its {name} must be " in _refusal(tmp_path, Checkpoint(kept.tensors, numbers))


def test_a_refused_checkpoint_stays(kept: Checkpoint, tmp_path: Path) -> None:
    """Whoever asked for the wrong training can still go on with the right one."""
    _refusal(tmp_path, kept, width=24)
    before = (tmp_path / "checkpoint-0").read_bytes()
    _fit_once(tmp_path)
    assert (tmp_path / "checkpoint-0").read_bytes() != before
