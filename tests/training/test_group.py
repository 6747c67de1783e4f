"""A group of processes does what one does alone, with real processes; and who dies takes the others along."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import group_cases
import pytest
import torch
from torch import Tensor

from neuralloader.backends import precision
from neuralloader.training import samplers
from neuralloader.training.group import ALONE, Group, joined_group

Outcome = Callable[[int, int, str], dict[str, Tensor]]
RANKS = [(size, rank) for size in group_cases.SIZES[1:] for rank in range(size)]
ranks = pytest.mark.parametrize(("size", "rank"), RANKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all processes left."""
    folder = tmp_path_factory.mktemp("groups")
    run = subprocess.run([sys.executable, group_cases.__file__, folder], capture_output=True, text=True, timeout=280)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr
    return folder


@pytest.fixture(scope="module")
def outcome(folder: Path) -> Outcome:
    """What a process had in the end of a case."""
    errors = {path: path.read_text() for size in group_cases.SIZES for path in (folder / str(size)).glob("*.txt")}
    assert errors == {}
    return lambda size, rank, case: torch.load(folder / str(size) / str(rank) / f"{case}.pt", weights_only=True)


def _assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], atol=tolerance, rtol=0, msg=f"{name} differs")


def _assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    _assert_close(a, b, tolerance=0)


@ranks
def test_sums(size: int, rank: int, outcome: Outcome) -> None:
    got = outcome(size, rank, "sums")
    total = sum(range(size))
    assert got["sum"].tolist() == pytest.approx([size, total, size / 3], abs=1e-15)
    assert got["first"].tolist() == [[10.0 * size + total] * 3] * 2
    assert got["second"].tolist() == [0, 1, 2, 3], "where a gradient is missing, it counts as 0"
    assert got["tensor"].tolist() == [size + total] * 2


@ranks
@pytest.mark.parametrize("case", ["clips", "small_batches", "keyframes"])
def test_all_of_them_have_what_one_has_alone(case: str, size: int, rank: int, outcome: Outcome) -> None:
    alone = outcome(1, 0, case)
    if case != "keyframes":
        assert alone["steps"] == 6
    _assert_close(outcome(size, rank, case), alone)
    _assert_same(outcome(size, rank, case), outcome(size, 0, case))


@ranks
def test_one_that_is_stopped_stops_all_and_they_go_on_together(size: int, rank: int, outcome: Outcome) -> None:
    _assert_same(outcome(size, rank, "resumed"), outcome(size, rank, "clips"))


@pytest.mark.parametrize("size", group_cases.SIZES)
def test_another_number_of_processes_goes_on_with_a_checkpoint(
    size: int, folder: Path, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers, "STEPS_PER_EPOCH", 1)
    monkeypatch.setattr(precision, "fast_dtype", lambda device_type: torch.float32)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes((folder / str(size) / "resumed" / "interrupted").read_bytes())
    _assert_close(group_cases._fit(ALONE, checkpoint, backend_seed=9), outcome(1, 0, "clips"))


@pytest.mark.parametrize("size", group_cases.SIZES[1:])
def test_networks_of_videos_are_shared_out_and_the_first_process_has_them_all(size: int, outcome: Outcome) -> None:
    _assert_same(outcome(size, 0, "videos"), outcome(1, 0, "videos"))
    assert outcome(size, 1, "videos")["steps"] < outcome(size, 0, "videos")["steps"] == 10


@pytest.mark.parametrize("how", group_cases.DEATHS)
def test_who_loses_another_says_so_instead_of_waiting(how: str, folder: Path) -> None:
    assert (
        (folder / how / "0.txt")
        .read_text()
        .startswith(
            "RuntimeError: process 0 of 2 lost another one while training together; its own message tells why, and the "
            "same command resumes: "
        )
    )
    own = folder / how / "1.txt"
    if how == "error":
        assert own.read_text() == "ValueError: the second process has had enough"
    else:
        assert not own.exists()


# --- without processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_parts_are_even_and_leave_nothing_out(length: int, size: int) -> None:
    parts = [list(range(length))[Group(rank, size).part(length)] for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(length))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert not length or sizes[0], "the first process, which tells of the progress, never goes without"


def test_alone_nothing_is_changed() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    ALONE.sum_gradients([parameter])
    ALONE.wait()
    assert parameter.grad is None
    tensor = torch.ones(3)
    assert ALONE.sum_tensor(tensor) is tensor
    assert ALONE.sum([1.0, 2.0]) == [1, 2]
    assert ALONE.is_first


def _set(monkeypatch: pytest.MonkeyPatch, **variables: str | None) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", [{}, {"RANK": "3"}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_a_process_that_torchrun_did_not_start_is_alone(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, **variables)
    with joined_group() as group:
        assert group == ALONE
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WORLD_SIZE": "2"}, "RANK=None, WORLD_SIZE=2, LOCAL_RANK=None"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "RANK=0, WORLD_SIZE=2, LOCAL_RANK=None"),
        ({"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}, "RANK=0, WORLD_SIZE=two, LOCAL_RANK=0"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK=2, WORLD_SIZE=2, LOCAL_RANK=0"),
        ({"WORLD_SIZE": "2", "RANK": "-1", "LOCAL_RANK": "0"}, "RANK=-1, WORLD_SIZE=2, LOCAL_RANK=0"),
        ({"WORLD_SIZE": "0", "RANK": "0", "LOCAL_RANK": "0"}, "RANK=0, WORLD_SIZE=0, LOCAL_RANK=0"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": ""}, "RANK=1, WORLD_SIZE=2, LOCAL_RANK="),
    ],
)
def test_variables_that_make_no_sense(variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, **variables)
    text = f"torchrun sets RANK, WORLD_SIZE and LOCAL_RANK, the ranks counted from 0; here are {told}: start several"
    with pytest.raises(ValueError, match=text), joined_group():
        pass
