"""What a user can choose about a pack, checked before any work."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from neuralloader.backends import BACKENDS, Scope, network_of
from neuralloader.codecs.keyframes import KeyframeCodec
from neuralloader.corpus.cache import OnError
from neuralloader.corpus.settings import ReadSettings, Resize
from neuralloader.training.budget import Budget
from neuralloader.training.clock import Duration
from neuralloader.training.recipes import RECIPES

FRAMES_PER_CLIP = 8  # the paper's; its networks have it in their weights
MAX_SEED = 2**63 - 1
MAX_KEY_INTERVAL = 256
WEIGHT_BITS = (2, 8)

# do not decide what the pack will be, or are seen in its frames
_NOT_ASKED = ("device", "on_error", "overwrite", "fresh", "cache", "checkpoint_seconds", "tensorboard")


@dataclass(frozen=True)
class PackSettings:
    """What a user can choose about a pack.

    Attributes:
        frame_rate: frames kept per second; None keeps every frame.
        size: (height, width) that frames are resized to.
        resize: "squash" to that size, "crop" what sticks out after filling it, or "pad" with black what fits into it.
        annotations: list files that give labels and splits, each a path or ``name=path``; see ``find_sources``.
        image_frame_rate: of sources that are folders of images.
        on_error: "raise" names all bad files and packs nothing, "skip" packs the others, "keep-partial" also keeps what
            decodes of a bad one.
        backend, config: which network, in which configuration.
        budget: what the finished file may take, in bytes or bits per pixel: it chooses width, bits, key-frame quality
            and interval, as far as these are None, and is met within 2%. None leaves these to the configuration.
        width: size of the network: a preset, "XS" to "L", or its number of channels; None is "S", or the budget's.
        weight_bits: of a weight's code, 2 to 8, which training gets used to in its last part; None is the
            configuration's.
        duration: how long to train.
        target_psnr_db: stop earlier, as soon as a sample of frames reaches it.
        seed: of everything random.
        device: where to train; None is CUDA where it is there, else the CPU.
        keyframe_codec: image format of key-frames.
        keyframe_quality: 1 to 100, on the codec's own scale; None is the configuration's.
        key_interval: frames between key-frames, a multiple of 8; None is the configuration's.
        scope: one network for the corpus, or one for each video, as NeRV and HNeRV are published (not D-NeRV).
        appendable: keep the encoder in the pack, so that ``neuralloader.append`` can add videos without training. The
            network is then trained on changed frames too (``Recipe.changes``), to know what to do with new ones.
        hold_out: keep every so-many-th frame of a video (n-1, 2n-1, ...) from training, to see how well a network does
            on frames it was not trained on; None keeps none. Key-frames and latents are stored all the same.
        init: a pack, or its URL, whose network training starts from; it must be the same network.
        overwrite: replace a pack that is there.
        fresh: throw away what an interrupted run of the same output left, instead of going on with it.
        cache: folder for the decoded frames, which stays and serves other runs; None is one that goes with the run.
        checkpoint_seconds: between checkpoints of the training.
        tensorboard: write the log for TensorBoard too.
    """

    frame_rate: float | None = 2.0
    size: tuple[int, int] = (256, 320)
    resize: Resize = "squash"
    annotations: tuple[str, ...] = ()
    image_frame_rate: float = 30.0
    on_error: OnError = "raise"
    backend: str = "dnerv"
    config: str = "fast"
    budget: Budget | None = None
    width: str | int | None = None
    weight_bits: int | None = None
    duration: Duration = field(default_factory=lambda: Duration(minutes=10))
    target_psnr_db: float | None = None
    seed: int = 0
    device: torch.device | None = None
    keyframe_codec: KeyframeCodec = "avif"
    keyframe_quality: int | None = None
    key_interval: int | None = None
    scope: Scope = "corpus"
    appendable: bool = False
    hold_out: int | None = None
    init: str | Path | None = None
    overwrite: bool = False
    fresh: bool = False
    cache: Path | None = None
    checkpoint_seconds: float = 60.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if (self.backend, self.config) not in RECIPES:
            known = ", ".join(f"{backend} {config}" for backend, config in RECIPES)
            raise ValueError(f"there is no configuration {self.config!r} of backend {self.backend!r}; known: {known}")
        for name, kinds in (("scope", Scope), ("on_error", OnError), ("resize", Resize)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(get_args(kinds))}")
        ReadSettings(self.frame_rate, self.size, self.resize, self.image_frame_rate)  # refuses what cannot be read
        self._check_numbers()
        network_of(
            self.backend, self.config, "S" if self.width is None else self.width, self.size
        )  # refuses a size that the network cannot make
        self._check_scope()

    def request(self) -> dict[str, Any]:
        """All that decides what the pack will be, besides the videos, as JSON values."""
        asked = dataclasses.asdict(self)
        return {name: str(v) if isinstance(v, Path) else v for name, v in asked.items() if name not in _NOT_ASKED}

    def _check_numbers(self) -> None:
        if self.keyframe_quality is not None and not 1 <= self.keyframe_quality <= 100:
            raise ValueError(f"keyframe_quality={self.keyframe_quality} must be 1 to 100")
        if self.key_interval is not None and (
            not FRAMES_PER_CLIP <= self.key_interval <= MAX_KEY_INTERVAL or self.key_interval % FRAMES_PER_CLIP
        ):
            raise ValueError(
                f"key_interval={self.key_interval} must be a multiple of {FRAMES_PER_CLIP} up to {MAX_KEY_INTERVAL}"
            )
        if self.key_interval is not None and not BACKENDS[self.backend, self.config][1].uses_keyframes:
            raise ValueError(f"key_interval={self.key_interval}: backend {self.backend!r} has no key-frames")
        if self.hold_out is not None and self.hold_out < 2:
            raise ValueError(f"hold_out={self.hold_out} must be 2 or more, or None")
        if self.weight_bits is not None and not WEIGHT_BITS[0] <= self.weight_bits <= WEIGHT_BITS[1]:
            raise ValueError(f"weight_bits={self.weight_bits} must be {WEIGHT_BITS[0]} to {WEIGHT_BITS[1]}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed={self.seed} must be 0 to {MAX_SEED}")
        if self.target_psnr_db is not None and not 0 < self.target_psnr_db < 60:
            raise ValueError(f"target_psnr_db={self.target_psnr_db} must be above 0 and below 60 dB")
        if not self.checkpoint_seconds > 0:
            raise ValueError(f"checkpoint_seconds={self.checkpoint_seconds} must be above 0")

    def _check_scope(self) -> None:
        kind = BACKENDS[self.backend, self.config][1]
        if self.scope == "video" and kind.uses_keyframes:
            raise ValueError(
                f"backend {self.backend!r} shares one network between all videos; scope='video' goes with nerv, cnerv "
                "and hnerv"
            )
        if self.scope == "video" and self.init is not None:
            raise ValueError("init goes with one network for the corpus, not with scope='video'")
        if self.appendable and kind.why_not_appendable:
            raise ValueError(f"appendable={self.appendable}: {kind.why_not_appendable}")
        if self.appendable and self.scope == "video":
            raise ValueError(
                "appendable=True: the network of one video cannot encode another; pack new videos by themselves, and "
                "open several packs as one"
            )
