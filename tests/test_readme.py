"""The README's commands parse, its Python block runs, and the tree it draws is there."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import tiny
from PIL import Image

from neuralloader import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_block_runs(fast_pack: tiny.TinyPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shutil.copy(fast_pack.path, tmp_path / "ucf.nvpack")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["video"].shape == (8, 3, *tiny.SIZE)  # type: ignore[attr-defined]


def test_python_block_of_more_videos_runs(
    fast_pack: tiny.TinyPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "more-videos.md").read_text("utf-8"), re.DOTALL)
    shutil.copy(fast_pack.path, tmp_path / "ucf.nvpack")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block, names)
    assert len(names["video"]) == 9  # type: ignore[arg-type]


def test_python_blocks_of_the_loader_guide_run(
    fast_pack: tiny.TinyPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "loader.md").read_text("utf-8"), re.DOTALL)
    shutil.copy(fast_pack.path, tmp_path / "ucf.nvpack")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert names["state"] == {"epoch": 0, "batches_done": 1, "seed": 0}
    assert len(names["loader"]) == 1  # type: ignore[arg-type]


def test_commands_parse() -> None:
    pages = README + "".join((ROOT / "docs" / page).read_text("utf-8") for page in ("more-videos.md", "loader.md"))
    commands = re.findall(r"^neuralloader ([^#\n]+)", pages, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        cli._parser().parse_args(shlex.split(command))


def test_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\S+)", README, re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_tree_names_what_exists() -> None:
    (tree,) = re.findall(r"```\n(neuralloader/\n.*?)```", README, re.DOTALL)
    lines = tree.splitlines()
    inside = {line.split()[0].rstrip("/") for line in lines if line.startswith("  ")}
    beside = {line.split()[0].rstrip("/") for line in lines if not line.startswith(" ")}
    assert all((ROOT / "neuralloader" / name).exists() for name in inside), inside
    assert all((ROOT / name).is_dir() for name in beside), beside
    on_disk = {path.name for path in (ROOT / "neuralloader").iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert on_disk == inside


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_quickstart_runs(fast_pack: tiny.TinyPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["quickstart.py", str(fast_pack.path)])
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    with Image.open(tmp_path / "batch.png") as picture:
        assert picture.size == (8 * tiny.SIZE[1], 4 * tiny.SIZE[0])
