"""What a run would do, before it does it: the record behind ``neuralloader pack --dry-run``, and its text.

Frames are counted by a probe of the files, key-frames are tried on a sample, and steps are timed on a few of them;
nothing is decoded whole, and nothing is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

from neuralloader.metrics.rate import bits_per_pixel, ledger_lines
from neuralloader.training.choice import Choice
from neuralloader.training.clock import Duration
from neuralloader.training.sizes import CorpusSize, NetworkSize, Outline, PartBytes

BYTES_PER_PARAMETER = 20  # while training: the weight, its gradient, two means of the optimiser, the best one so far
BYTES_PER_LATENT_NUMBER = 12  # its offset and two means


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a training holds.

    Attributes:
        frames, keyframes: pixels of the corpus: in mapped files, or on the device where they fit.
        network: weights and what the optimiser keeps of them.
        latents: numbers that are trained for each frame's latent.
        step: of one training step, as it was measured.
    """

    frames: int
    keyframes: int
    network: int
    latents: int
    step: int

    @property
    def total(self) -> int:
        return self.frames + self.keyframes + self.network + self.latents + self.step


@dataclass(frozen=True)
class Plan:
    """A run as it would be.

    Attributes:
        outline: what is packed.
        choice: the network, its key-frames and latents.
        corpus, network: their counts.
        has_budget: whether the choice is that of a budget.
        memory: while training.
        seconds_per_step, steps_per_epoch: of the training.
        duration: how long it is to be.
    """

    outline: Outline
    choice: Choice
    corpus: CorpusSize
    network: NetworkSize
    has_budget: bool
    memory: MemoryPlan
    seconds_per_step: float
    steps_per_epoch: int
    duration: Duration

    @property
    def bits_per_pixel(self) -> float:
        return bits_per_pixel(self.choice.sizes.total, self.corpus.num_frames, self.outline.frame_size)

    @property
    def seconds_per_epoch(self) -> float:
        return self.seconds_per_step * self.steps_per_epoch

    @property
    def seconds(self) -> float:
        """That the training takes."""
        if self.duration.minutes is not None:
            return 60 * self.duration.minutes
        assert self.duration.epochs is not None
        return self.duration.epochs * self.seconds_per_epoch

    @property
    def num_epochs(self) -> float:
        """Passes over the corpus in that time."""
        return self.seconds / self.seconds_per_epoch


def make_plan(
    outline: Outline,
    choice: Choice,
    *,
    has_budget: bool,
    duration: Duration,
    time_step: Callable[[], float],
    steps_per_epoch: int,
    step_bytes: int,
) -> Plan:
    """Work out a plan.

    Args:
        outline: what would be packed.
        choice: of ``choose``, or of ``expect`` where there is no budget.
        has_budget: which of the two.
        duration: of the training.
        time_step: trains a few steps and gives the seconds of one; called once.
        steps_per_epoch: of the training.
        step_bytes: memory that such a step took at its peak, beside what stays.
    """
    network, corpus = outline.network(choice.width), outline.corpus(choice.key_interval)
    height, width = outline.frame_size
    num_numbers = choice.num_latents * network.symbols_per_latent if network.latents_are_steered else 0
    num_parameters = outline.num_networks * (network.num_parameters + network.num_encoder_parameters)
    return Plan(
        outline=outline,
        choice=choice,
        corpus=corpus,
        network=network,
        has_budget=has_budget,
        memory=MemoryPlan(
            frames=corpus.num_frames * height * width * 3,
            keyframes=corpus.num_keyframes * height * width * 3,
            network=BYTES_PER_PARAMETER * num_parameters,
            latents=BYTES_PER_LATENT_NUMBER * num_numbers,
            step=step_bytes,
        ),
        seconds_per_step=time_step(),
        steps_per_epoch=steps_per_epoch,
        duration=duration,
    )


def plan_lines(plan: Plan) -> list[str]:
    """A plan, for people."""
    outline, choice, corpus, memory = plan.outline, plan.choice, plan.corpus, plan.memory
    height, width = outline.frame_size
    skipped = f"; {_count(len(outline.skipped), 'source')} skipped" if outline.skipped else ""
    networks = f" in {outline.num_networks} networks, one for each video" if outline.num_networks > 1 else ""
    lines = [
        f"{_count(corpus.num_frames, 'frame')} of {height}x{width} in {_count(len(outline.videos), 'video')}, "
        f"{_count(corpus.num_clips, 'clip')} of {outline.frames_per_clip}{skipped}",
        f"{outline.backend} ({outline.config}) of width {choice.width}: "
        f"{outline.num_networks * plan.network.num_parameters:,} parameters of {choice.weight_bits} bits{networks}",
    ]
    if choice.key_interval is not None:
        lines.append(
            f"{_count(corpus.num_keyframes, 'key-frame')} of quality {choice.keyframe_quality}, one every "
            f"{choice.key_interval} frames"
        )
    lines += ["", "Expected:", *ledger_lines(_ledger(choice.sizes)), f"{plan.bits_per_pixel:.4f} bits per pixel"]
    if plan.has_budget:
        lines.append(choice.shortfall or f"The file is brought to the budget of {choice.budget_bytes:,} bytes.")
    lines += [
        "",
        f"Memory: {_megabytes(memory.total)}: frames {_megabytes(memory.frames)}, key-frames "
        f"{_megabytes(memory.keyframes)}, network {_megabytes(memory.network)}, latents {_megabytes(memory.latents)}, "
        f"a step {_megabytes(memory.step)}",
        f"Time: {plan.seconds_per_step:.3g} s a step, {_count(plan.steps_per_epoch, 'step')} an epoch: "
        f"{_time(plan.seconds_per_epoch)} an epoch, {plan.num_epochs:,.4g} epochs in {_time(plan.seconds)}",
    ]
    if plan.num_epochs < 1:
        lines.append("That is less than one epoch: some frames are never trained on; give more time, or fewer frames.")
    return lines


def _ledger(sizes: PartBytes) -> dict[str, int]:
    rows = {"weights": sizes.weights, "keyframes": sizes.keyframes, "latents": sizes.latents, "rest": sizes.rest}
    return {name: size for name, size in rows.items() if size}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.3g} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.3g} GB"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
