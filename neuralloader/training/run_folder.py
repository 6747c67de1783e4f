"""The folder of one run of the packer, beside the pack it makes: what the same command needs to go on where it stopped.

ut.nvpack.run/
  request.json     what was asked for; another request is refused as soon as there is a checkpoint
  frames/          decoded frames (``corpus.cache``)
  keyframes/       encoded key-frames, and their pixels
  choice.json      what a budget is spent on
  checkpoint-0     state of the training; or one for each part of the videos, where each has a network
  log.jsonl        a line for each evaluation; all that stays when the pack is there, until the next one is begun
  tensorboard/     the same for TensorBoard, where it is asked for
  lock             held while a process works here
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuralloader.container.replace import hold_lock, replacing

MAX_TOLD = 5  # changes named in one error
MAX_REQUEST_BYTES = 1 << 20


class RunFolder:
    """The folder of a run.

    Args:
        output: the pack that is to be made.
    """

    def __init__(self, output: Path):
        self.path = output.with_name(f"{output.name}.run")
        self.frames = self.path / "frames"
        self.keyframes = self.path / "keyframes"
        self.choice = self.path / "choice.json"
        self.log = self.path / "log.jsonl"

    def checkpoint(self, number: int = 0) -> Path:
        """Where the state of the training is kept, or of so manieth part of the videos."""
        return self.path / f"checkpoint-{number}"

    @property
    def has_checkpoint(self) -> bool:
        """Whether some training is behind us."""
        return any(self.path.glob("checkpoint-*"))

    @contextmanager
    def open(self, request: Mapping[str, Any], *, fresh: bool) -> Iterator[None]:
        """Make the folder, or go on in it, alone.

        Args:
            request: JSON values; all that decides what the pack will be, besides the videos.
            fresh: throw away what is there.

        Raises:
            ValueError: another process works here, or a training of another request stopped here.
            OSError: the folder cannot be made.
        """
        self.path.mkdir(exist_ok=True)
        with hold_lock(self.path / "lock") as is_ours:
            if not is_ours:
                raise ValueError(f"another process is packing into {self.path}; wait for it, or choose another -o")
            if fresh:
                self._clear({"lock"})
            if self.has_checkpoint:
                self._check_same(request)
            else:
                self._remove("choice.json", "log.jsonl", "tensorboard")  # of a run that finished, or came to nothing
                self._write_request(request)
            yield

    def finish(self) -> None:
        """The pack is there: all but the log goes."""
        self._clear({"lock", "log.jsonl", "tensorboard"})
        self._remove("lock")

    def _clear(self, keep: set[str]) -> None:
        """Remove all else; checkpoints first, because what is there without one binds no later run."""
        names = {entry.name for entry in self.path.iterdir()} - keep
        self._remove(*sorted(names, key=lambda name: not name.startswith("checkpoint-")))

    def _remove(self, *names: str) -> None:
        for path in (self.path / name for name in names):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _check_same(self, request: Mapping[str, Any]) -> None:
        before = self._read_request()
        asked = json.loads(json.dumps(request))
        changed = [
            f"{name} was {json.dumps(before.get(name))} and is {json.dumps(asked.get(name))}"
            for name in sorted({*before, *asked})
            if before.get(name) != asked.get(name)
        ]
        if changed:
            more = f", and {len(changed) - MAX_TOLD} more" if len(changed) > MAX_TOLD else ""
            raise ValueError(
                f"{self.path} holds a training that was asked for differently: {'; '.join(changed[:MAX_TOLD])}{more}. "
                "Ask for the same to go on with it, or start over with --fresh (fresh=True)"
            )

    def _write_request(self, request: Mapping[str, Any]) -> None:
        text = json.dumps(request, indent=1, sort_keys=True).encode()
        with replacing(self.path / "request.json", num_bytes=len(text), overwrite=True) as file:
            file.write(text)

    def _read_request(self) -> dict[str, Any]:
        path = self.path / "request.json"
        try:
            with open(path, "rb") as file:
                request = json.loads(file.read(MAX_REQUEST_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read ({error}); start over with --fresh (fresh=True)") from error
        if not isinstance(request, dict):
            raise ValueError(f"{path} is no request of a packer; start over with --fresh (fresh=True)")
        return request
