"""From settings, or a budget, to what is encoded and trained: the network, its key-frames, and what latents may cost.

Without a budget, settings and recipe decide. With one, a probe of the corpus's key-frames and of a training step does
(``choice``), key-frames are encoded, and what they took more or less goes to the latents. The outcome is kept in the
run's folder: the same run, gone on with, must not choose again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from neuralloader.backends import BACKENDS, network_of
from neuralloader.container.replace import replacing
from neuralloader.corpus.cache import Ingested
from neuralloader.corpus.frames import FrameFiles
from neuralloader.packfile import build_backend
from neuralloader.training.choice import Choice, choose, trainable_parameters
from neuralloader.training.group import Group
from neuralloader.training.keyframe_probe import KeyframeProbe, choose_runs, probe_keyframes, stored_bytes
from neuralloader.training.recipes import KEY_INTERVALS, RECIPES
from neuralloader.training.settings import FRAMES_PER_CLIP, PackSettings
from neuralloader.training.sizes import Outline, PartBytes
from neuralloader.training.step_probe import StepCost, probe_steps

PROBE_STEPS = 5
PROBE_FRAMES = 64
MAX_TRIES = 3

Encoded = tuple[Sequence[bytes], np.ndarray]  # key-frames as files, and as pixels


@dataclass(frozen=True)
class Spending:
    """What is decided.

    Attributes:
        width, weight_bits: of the network.
        key_interval, keyframe_quality: None in a pack without key-frames.
        choice: of a budget; None where there is none.
    """

    width: str | int
    weight_bits: int
    key_interval: int | None
    keyframe_quality: int
    choice: Choice | None = None

    @property
    def latent_bits_per_frame(self) -> float | None:
        """What training is to bring latents to; None where their price is the recipe's."""
        steered = self.choice is not None and self.choice.latents_are_steered
        return self.choice.latent_bits_per_frame or None if self.choice is not None and steered else None


def make_outline(settings: PackSettings, corpus: Ingested) -> Outline:
    """What is to be packed."""
    return Outline(
        backend=settings.backend,
        config=settings.config,
        frame_size=settings.size,
        videos=corpus.videos,
        skipped=corpus.skipped,
        frames_per_clip=FRAMES_PER_CLIP,
        num_networks=len(corpus.videos) if settings.scope == "video" else 1,
        appendable=settings.appendable,
    )


def by_settings(settings: PackSettings) -> Spending:
    """What is decided where there is no budget."""
    recipe = RECIPES[settings.backend, settings.config]
    return Spending(
        width="S" if settings.width is None else settings.width,
        weight_bits=settings.weight_bits or recipe.weight_bits,
        key_interval=settings.key_interval or KEY_INTERVALS.get((settings.backend, settings.config)),
        keyframe_quality=settings.keyframe_quality or recipe.keyframe_quality,
    )


def spend_budget(
    settings: PackSettings,
    corpus: Ingested,
    kept: Path,
    device: torch.device,
    group: Group,
    encode: Callable[[Spending], Encoded],
) -> tuple[Spending, Encoded]:
    """Decide what a budget is spent on, and encode the key-frames.

    Args:
        settings: with a budget.
        corpus: all its frames.
        kept: file that the decision is kept in; one that is there already holds.
        device: of the training to come.
        group: the first process decides, and all encode.
        encode: makes the key-frames of a decision.

    Raises:
        ValueError: the budget is below the least that there can be, or the file is damaged.
    """
    if kept.exists():
        spending = of_choice(settings, _read_choice(kept))
        return spending, encode(spending)
    outline, codec = make_outline(settings, corpus), settings.keyframe_codec
    uses_keyframes = BACKENDS[settings.backend, settings.config][1].uses_keyframes
    probe, most = None, None
    if group.is_first:
        probe = probe_corpus(corpus, settings) if uses_keyframes else None
        most = most_parameters(settings, corpus.frames, len(corpus.frames), device)
    tried = kept.with_name(f"{kept.name}.tried")
    for number in range(MAX_TRIES):
        if group.is_first:
            _write(tried, choose_by(settings, outline, probe, most))
        group.wait()
        spending = of_choice(settings, _read_choice(tried))
        encoded = encode(spending)
        assert spending.choice is not None
        num_bytes = stored_bytes(encoded[0], codec) if uses_keyframes else 0
        settled = spending.choice.settle(num_bytes)
        if settled is not None or number == MAX_TRIES - 1:
            break
        if probe is not None:
            probe = probe.scaled_to(spending.keyframe_quality, num_bytes / len(encoded[0]))
    spending = replace(spending, choice=settled or spending.choice)
    if group.is_first:
        assert spending.choice is not None
        _write(kept, spending.choice)
    group.wait()
    return spending, encoded


def choose_by(settings: PackSettings, outline: Outline, probe: KeyframeProbe | None, most: int | None) -> Choice:
    """``choose`` for settings."""
    assert settings.budget is not None
    return choose(
        settings.budget,
        outline,
        probe,
        width=settings.width,
        weight_bits=settings.weight_bits,
        key_interval=settings.key_interval,
        keyframe_quality=settings.keyframe_quality,
        most_parameters=most,
    )


def of_choice(settings: PackSettings, choice: Choice) -> Spending:
    """A choice in the words of the packer."""
    quality = choice.keyframe_quality or RECIPES[settings.backend, settings.config].keyframe_quality
    return Spending(choice.width, choice.weight_bits, choice.key_interval, quality, choice)


def most_parameters(
    settings: PackSettings, frames: np.ndarray | FrameFiles, num_frames: int, device: torch.device
) -> int | None:
    """The largest network worth training for as long as is asked for; None where the width is asked for, too.

    Args:
        settings: tell how long.
        frames: (n, H, W, 3) uint8, some or all of the corpus; few of them are trained on, to take the time.
        num_frames: of the corpus.
        device: of the training.
    """
    if settings.width is not None:
        return None
    if settings.duration.epochs is not None:
        return trainable_parameters(seconds=settings.duration.epochs * num_frames, seconds_per_frame=1.0)
    assert settings.duration.minutes is not None
    cost = time_steps(settings, frames, "S", device, num_steps=PROBE_STEPS)
    return trainable_parameters(seconds=60 * settings.duration.minutes, seconds_per_frame=cost.seconds_per_frame)


def time_steps(
    settings: PackSettings, frames: np.ndarray | FrameFiles, width: str | int, device: torch.device, *, num_steps: int
) -> StepCost:
    """``probe_steps`` for a network of settings."""
    recipe = RECIPES[settings.backend, settings.config]
    network = network_of(settings.backend, settings.config, width, settings.size)
    with torch.random.fork_rng(devices=[]):
        backend = build_backend(settings.backend, settings.config, network)
    bits = settings.weight_bits or recipe.weight_bits
    return probe_steps(backend, frames[:PROBE_FRAMES], recipe, bits, device, num_steps=num_steps)


def probe_corpus(corpus: Ingested, settings: PackSettings) -> KeyframeProbe:
    """What the corpus's key-frames cost and give."""
    num_frames = np.array([video.num_frames for video in corpus.videos])
    first_row = np.concatenate([[0], np.cumsum(num_frames)])
    runs = [(int(first_row[run.video]) + run.first, run.num_frames) for run in choose_runs(num_frames)]
    return probe_keyframes([corpus.frames[first : first + length] for first, length in runs], settings.keyframe_codec)


def _write(path: Path, choice: Choice) -> None:
    text = json.dumps(asdict(choice), sort_keys=True).encode()
    with replacing(path, num_bytes=len(text), overwrite=True) as file:
        file.write(text)


def _read_choice(path: Path) -> Choice:
    try:
        told = json.loads(path.read_bytes())
        return Choice(**{**told, "sizes": PartBytes(**told["sizes"])})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); start over with --fresh (fresh=True)") from error
