"""The rooms are stairs: what may import what, which libraries stay where, and how little is imported to begin with.

The check reads the source with ``ast``, so imports inside functions count; it is shown below that it can fail.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

import neuralloader

PACKAGE = Path(neuralloader.__file__).parent

# A room imports from rooms of lower levels only, and from itself; those on one level do not know each other. The top
# level is the front door, whose parts may.
LEVELS = {
    **dict.fromkeys(["clips", "errors"], 0),
    **dict.fromkeys(["corpus", "codecs", "container", "backends", "metrics"], 1),
    "packfile": 2,
    **dict.fromkeys(["training", "loading"], 3),
    "report": 4,
    **dict.fromkeys(["__init__", "__main__", "cli", "demo", "packing"], 5),
}
TOP = max(LEVELS.values())
OWNERS = {  # library -> the one room that may use it
    **dict.fromkeys(["decord", "av", "torchcodec"], "corpus"),
    "cv2": None,
}


def _sources(package: Path) -> dict[str, str]:
    """Module name below the package, such as ``codecs.rans``, to its source."""
    sources = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path.read_text()
    return sources


def _room(module: str) -> str:
    return module.split(".")[0]


def _imports(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything imported anywhere in a file; relative imports are resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["neuralloader", *module.split(".")]
                above = here[: len(here) - node.level + (1 if is_package else 0)]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def _find_violations(sources: dict[str, str]) -> list[str]:
    """One line for each import that goes up the stairs, sideways, or to a library of another room."""
    found = []
    for module, source in sources.items():
        room = _room(module)
        if room not in LEVELS:
            found.append(f"{module}: {room} has no level; give it one")
            continue
        for line, name in _imports(source, module, is_package=_is_package(module, sources)):
            library, *below = name.split(".")
            if library in OWNERS and OWNERS[library] != room:
                found.append(f"{module}:{line} imports {library}, which only {OWNERS[library]} may")
            if library != "neuralloader":
                continue
            target = below[0] if below and below[0] in LEVELS else "__init__"
            lower = LEVELS[target] < LEVELS[room]
            if target != room and not lower and not LEVELS[target] == LEVELS[room] == TOP:
                found.append(
                    f"{module}:{line} imports {name}: {room} is on level {LEVELS[room]}, {target} on {LEVELS[target]}"
                )
    return found


def _is_package(module: str, sources: dict[str, str]) -> bool:
    return any(other.startswith(f"{module}.") for other in sources)


def _find_cycle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, or nothing."""
    edges: dict[str, set[str]] = {}
    for module, source in sources.items():
        edges[module] = set()
        for _, name in _imports(source, module, is_package=_is_package(module, sources)):
            if name.startswith("neuralloader."):
                target = name.removeprefix("neuralloader.")
                known = target if target in sources else target.rpartition(".")[0]
                if known in sources and known != module:
                    edges[module].add(known)
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(edges[module]):
            if cycle := visit(target, [*path, module]):
                return cycle
        done.add(module)
        return []

    return next((cycle for module in edges if (cycle := visit(module, []))), [])


# --- the package ----------------------------------------------------------------------------------------------------


def test_every_import_goes_down_the_stairs() -> None:
    sources = _sources(PACKAGE)
    assert {_room(module) for module in sources} >= set(LEVELS) - {"demo"}, "the check sees the package"
    assert len(sources) > 30
    assert _find_violations(sources) == []


def test_no_two_files_import_each_other() -> None:
    assert _find_cycle(_sources(PACKAGE)) == []


def test_only_the_room_of_videos_imports_decord() -> None:
    users = {
        module
        for module, source in _sources(PACKAGE).items()
        for _, name in _imports(source, module)
        if name.split(".")[0] == "decord"
    }
    assert users
    assert {_room(module) for module in users} == {"corpus"}


# --- the check itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source", "text"),
    [
        ("codecs.rans", "from neuralloader.packfile import Pack", "codecs is on level 1, packfile on 2"),
        ("codecs.rans", "from neuralloader.container import layout", "codecs is on level 1, container on 1"),
        ("loading.decode", "import neuralloader.training.fit", "loading is on level 3, training on 3"),
        (
            "training.fit",
            "def f():\n    from neuralloader.report.measure import x",
            "training is on level 3, report on 4",
        ),
        ("clips", "from neuralloader.errors import PackError", "clips is on level 0, errors on 0"),
        ("backends.base", "from neuralloader import NeuralVideoDataset", "backends is on level 1, __init__ on 5"),
        ("loading.decode", "from ..training import fit", "loading is on level 3, training on 3"),
        ("loading.decode", "from .. import training", "loading is on level 3, training on 3"),
        (
            "metrics.rate",
            "import importlib\nimportlib.import_module('neuralloader.cli')",
            "metrics is on level 1, cli on 5",
        ),
        ("loading.decode", "import decord", "imports decord, which only corpus may"),
        ("corpus.read", "def f():\n    import cv2", "imports cv2, which only None may"),
        ("report.page", "from av.container import open", "imports av, which only corpus may"),
        ("gadgets", "import os", "gadgets has no level"),
    ],
)
def test_a_planted_import_is_found(module: str, source: str, text: str) -> None:
    sources = {**_sources(PACKAGE), module: source}
    found = [line for line in _find_violations(sources) if line.startswith(module)]
    assert len(found) == 1
    assert text in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("loading.decode", "from neuralloader.packfile import Pack\nimport torch"),
        ("loading.decode", "from .cache import KeyframeCache"),
        ("loading.decode", "from . import planner"),
        ("corpus.worker", "import decord"),
        ("cli", "def f():\n    from neuralloader.packing import pack"),
    ],
)
def test_an_import_that_is_allowed(module: str, source: str) -> None:
    sources = {**_sources(PACKAGE), module: source}
    assert _find_violations(sources) == []


def test_a_planted_circle_is_found() -> None:
    sources = {**_sources(PACKAGE), "loading.planner": "def f():\n    from neuralloader.loading.dataset import x"}
    cycle = _find_cycle(sources)
    assert cycle[0] == cycle[-1]
    assert {"loading.planner", "loading.dataset"} <= set(cycle)


# --- what is imported when the program runs -------------------------------------------------------------------------


def _modules_after(code: str, *arguments: str) -> set[str]:
    """Top-level modules of a fresh interpreter after running some code."""
    script = f"import sys\n{code}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return set(run.stdout.split())


def test_the_package_alone_imports_almost_nothing() -> None:
    modules = _modules_after("import neuralloader\nneuralloader.PackError")
    assert "neuralloader" in modules
    assert not modules & {"torch", "numpy", "PIL", "decord", "tqdm", "safetensors"}


def test_the_help_text_needs_no_torch() -> None:
    code = "from neuralloader.cli import main\ntry:\n    main(['info', '--help'])\nexcept SystemExit:\n    print()"
    assert "torch" not in _modules_after(code)


def test_reading_a_pack_needs_no_video_decoder(fast_pack: tiny.TinyPack) -> None:
    code = (
        "for name in ('decord', 'av', 'cv2', 'torchcodec'):\n    sys.modules[name] = None  # importing it now fails\n"
        "import neuralloader\n"
        "dataset = neuralloader.NeuralVideoDataset(sys.argv[1], device='cpu')\n"
        "assert dataset[0][0].shape == (8, 3, 48, 64)\n"
        "from neuralloader.report.measure import describe_pack\n"
        "describe_pack(neuralloader.open_pack(sys.argv[1]))\n"
        "assert not any(name.startswith('neuralloader.corpus') for name in sys.modules)\n"
        "assert not any(name.startswith('neuralloader.training') for name in sys.modules)\n"
        "for name in ('decord', 'av', 'cv2', 'torchcodec'):\n    del sys.modules[name]"
    )
    assert not _modules_after(code, str(fast_pack.path)) & {"decord", "av", "cv2", "torchcodec"}
