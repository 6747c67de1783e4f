"""From rows of the frame table to frames on a device: plan, key-frames, network, gather."""

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuralloader.backends import Units
from neuralloader.loading.cache import CacheMode, FeatureCache, PixelCache, check_cache, choose_bounds, feature_bytes
from neuralloader.loading.engine import Engine, check_precision
from neuralloader.loading.latents import DeviceLatents, repeat_for_units
from neuralloader.loading.planner import DecodePlan, PlannedStep, Planner, group_steps
from neuralloader.loading.streams import DecodeStream
from neuralloader.loading.threads import StepThreads
from neuralloader.loading.transfer import upload
from neuralloader.packfile import Pack

# Frames decoded at a time, in values of their widest map: bounds the memory. A CPU gains nothing from more, and loses
# with a wide network (docs/experiments.md).
VALUES_PER_STEP = {"cpu": 1 << 22, "cuda": 1 << 28}
STACK_VALUES_PER_STEP = {"cpu": 1 << 19, "cuda": 1 << 28}  # the same where many networks decode together
VALUES_PER_THREAD = 1 << 20  # fewer are not worth a thread of their own


@dataclass(frozen=True)
class DecodeSettings:
    """How a pack is decoded.

    Attributes:
        size: (height, width) of the frames; None is the pack's.
        cache: where key-frames are kept, as ``loading.cache`` has it.
        cache_bytes: bound on them; None is that module's choice.
        precision: of the network; None is bfloat16 where the device is fast at it, else float32.
        compile, cuda_graphs: as ``Engine`` has them.

    Raises:
        ValueError: a cache, a bound or a precision that is not there.
    """

    size: tuple[int, int] | None = None
    cache: CacheMode = "auto"
    cache_bytes: int | None = None
    precision: torch.dtype | None = None
    compile: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        check_cache(self.cache, self.cache_bytes)
        check_precision(self.precision)


DEFAULT_SETTINGS = DecodeSettings()


@dataclass
class DecodeCounts:
    """What a decoder has done so far.

    Attributes:
        num_frames_used: different frames that were asked for, batch by batch.
        num_frames_decoded: frames that went through the network for them; more where it decodes whole clips.
        num_keyframes_read: key-frames that were decoded from their image files.
    """

    num_frames_used: int = 0
    num_frames_decoded: int = 0
    num_keyframes_read: int = 0

    def __add__(self, other: "DecodeCounts") -> "DecodeCounts":
        return DecodeCounts(
            self.num_frames_used + other.num_frames_used,
            self.num_frames_decoded + other.num_frames_decoded,
            self.num_keyframes_read + other.num_keyframes_read,
        )


class Decoder:
    """A pack's network on a device, with what it needs at hand. Threads take turns.

    Args:
        pack: an opened pack.
        device: where to decode, and where the frames end up.
        settings: how.
        stream: what it works on; None makes one.

    Raises:
        PackError: weights or latents are damaged.
        ValueError: a setting that is not possible.
    """

    def __init__(
        self,
        pack: Pack,
        device: torch.device,
        settings: DecodeSettings = DEFAULT_SETTINGS,
        stream: DecodeStream | None = None,
    ):
        self.device, self.stream, self.counts = device, stream or DecodeStream(device), DecodeCounts()
        self._pack, self._settings = pack, settings
        self._lock = threading.Lock()
        self._threads = StepThreads()
        with self.stream.working():  # the memory of what stays belongs to it
            self._engine = Engine(
                pack.load_backend(),
                pack.frame_size,
                device,
                precision=settings.precision,
                size=settings.size,
                compile=settings.compile,
                cuda_graphs=settings.cuda_graphs,
            )
            backend = self._engine.backend
            self._latents = DeviceLatents(pack, device) if backend.latent_shape is not None else None
            self._planner = self._make_planner()
            self._keyframes, self._pixels = self._open_caches() if backend.uses_keyframes else (None, None)

    def plan(self, rows: np.ndarray) -> DecodePlan:
        """Plan the decoding of frames; each unit they need is decoded once.

        Args:
            rows: (n,) rows of the pack's frame table, in any order, repeats allowed.
        """
        return self._planner.plan(rows, self._num_threads())

    def missing_keyframes(self, plan: DecodePlan) -> np.ndarray:
        if self._keyframes is None:
            return np.zeros(0, np.int64)
        with self._lock:
            missing = self._keyframes.missing(plan.keys)
            return missing if self._pixels is None else self._pixels.missing(missing)

    def add_keyframes(self, rows: np.ndarray, images: np.ndarray) -> None:
        assert self._keyframes is not None, "a pack without key-frames misses none"
        with self._lock, self.stream.working(), self._engine.mode():
            self.counts.num_keyframes_read += len(rows)
            if self._pixels is not None:
                self._pixels.put(rows, images)
            else:
                self._keyframes.put(rows, images)

    def run(self, plan: DecodePlan, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Decode what was planned, on ``stream``; the caller's has to wait for it (``DecodeStream.call``).

        Args:
            plan: of this decoder, or of another for the same pack.
            dtype: uint8, or a float type for 0 to 1.

        Returns:
            (num_requests, 3, H, W) RGB on the device.

        Raises:
            PackError: a key-frame is damaged.
        """
        with self._lock, self.stream.working():
            return self._run(plan, dtype)

    def _run(self, plan: DecodePlan, dtype: torch.dtype) -> Tensor:
        size = self._settings.size or self._pack.frame_size
        decoded = torch.empty((plan.num_frames_decoded, 3, *size), dtype=dtype, device=self.device)
        places = iter(decoded.split([step.rows.size for step in plan.steps]))

        def decode_into_place(job: tuple[_StepInputs, Tensor]) -> None:
            inputs, place = job
            with self._engine.mode():
                place.copy_(self._decode(inputs, dtype).flatten(0, 1))

        max_keys = 0 if self._keyframes is None else self._keyframes.num_slots
        for group in group_steps(plan.steps, max_keys):
            jobs = [(inputs, next(places)) for inputs in self._prepare(group)]
            self._threads.run(decode_into_place, jobs, self._num_threads())
        self.counts.num_frames_used += plan.num_frames_used
        self.counts.num_frames_decoded += plan.num_frames_decoded
        return _take(decoded, plan.source)

    def decode(self, rows: np.ndarray, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Plan and decode.

        Args: as ``plan`` and ``run``.

        Returns:
            (n, 3, H, W) RGB on the device.

        Raises:
            PackError: a key-frame is damaged.
        """
        return self.stream.call(lambda: self.run(self.plan(rows), dtype))

    def decode_between(self, rows: np.ndarray, offsets: np.ndarray) -> Tensor:
        """Decode times between frames.

        D-NeRV is asked for its flow at these times; CNeRV's and HNeRV's latents are interpolated, as are D-NeRV's,
        whose key-frames count as zero. (The published D-NeRV has weights for each place in a clip, so that its frames
        jump where a time passes from one place to the next.)

        Args:
            rows: (n,) rows of the frame table, each with a frame of its video behind it.
            offsets: (n,) float, 0 to 1: how far each time lies between its frame and the next.

        Returns:
            (n, 3, H, W) uint8 RGB on the device.

        Raises:
            ValueError: the network knows no times between frames, with the reason.
            PackError: a key-frame is damaged.
        """
        why_not = self._engine.backend.why_not_interpolated
        if len(rows) and why_not is not None:
            raise ValueError(f"{self._pack.path}: {why_not}")
        return self.stream.call(lambda: self.run(self._planner.plan_between(rows, offsets)))

    def end_threads(self) -> None:
        """End the threads that were started; the next batch starts some again."""
        with self._lock:
            self._threads.end()

    def _num_threads(self) -> int:
        """Steps that run at once."""
        return torch.get_num_threads() if self._engine.takes_threads else 1

    def _make_planner(self) -> Planner:
        pack, backend, settings = self._pack, self._engine.backend, self._settings
        height, width = pack.frame_size
        values_per_unit = backend.frames_per_unit * height * width * backend.values_per_pixel
        values_per_step = VALUES_PER_STEP if backend.num_networks is None else STACK_VALUES_PER_STEP
        bound = values_per_step.get(self.device.type, values_per_step["cpu"])
        return Planner(
            pack.frames,
            backend.frames_per_unit,
            pack.description.scope,
            max_units=max(1, bound // values_per_unit),
            min_units=max(1, VALUES_PER_THREAD // values_per_unit),
            powers_of_two=settings.compile or settings.cuda_graphs,
        )

    def _open_caches(self) -> tuple[FeatureCache, PixelCache | None]:
        engine, settings = self._engine, self._settings
        black = torch.zeros((1, 3, *self._pack.frame_size), dtype=torch.uint8, device=self.device)
        with engine.mode():
            example = engine.encode_keyframes(black)
            num_keys = len(self._pack.index.keys)
            needed = num_keys * feature_bytes(example)
            on_device, on_host = choose_bounds(settings.cache, settings.cache_bytes, needed, self.device)
            read = functools.partial(_read_keyframes, self._pack, self.counts)
            pixels = PixelCache(read, on_host) if on_host else None
            keyframes = FeatureCache(
                num_keys,
                read if pixels is None else pixels.get,
                engine.encode_keyframes,
                example,
                max_bytes=on_device,
                min_slots=2 * self._planner.max_units,
                keys_per_step=self._planner.max_units * self._planner.frames_per_unit,
            )
        return keyframes, pixels

    def _prepare(self, steps: Sequence[PlannedStep]) -> list["_StepInputs"]:
        """The tensors of some steps on the device, whose key-frames are then at hand."""
        keys = slots = np.zeros(0, np.int64)
        if self._keyframes is not None:
            keys = np.unique(np.concatenate([step.keys.ravel() for step in steps]))
            with self._engine.mode():
                slots = self._keyframes.slots(keys)
        has_grid_per_video = self._latents is not None and self._engine.backend.num_networks is not None
        named: list[dict[str, np.ndarray]] = []
        for step in steps:
            arrays = {
                "keys": slots[np.searchsorted(keys, step.keys)] if len(keys) else step.keys,
                "phase": step.phase,
                "time": step.time,
                "network_time": step.network_time,
            }
            if self._latents is not None:
                arrays["latents"] = step.latents
                if step.next_latents is not None and step.next_shares is not None:
                    arrays |= {"next_latents": step.next_latents, "next_shares": step.next_shares}
            if step.networks is not None:
                arrays["networks"] = step.networks
                if has_grid_per_video:
                    arrays["videos"] = repeat_for_units(step.networks, step.rows.size)
            named.append(arrays)
        with self._engine.mode():  # as padding is made: for tensors of two kinds, everything would be compiled twice
            tensors = iter(upload([array for arrays in named for array in arrays.values()], self.device))
        return [_StepInputs(**{name: next(tensors) for name in arrays}) for arrays in named]

    def _decode(self, step: "_StepInputs", dtype: torch.dtype) -> Tensor:
        """The frames of a step: (n, T, 3, H, W)."""
        features = () if self._keyframes is None else self._keyframes.features
        units = Units(step.keys, step.phase, step.time, step.network_time)
        latents = None
        if self._latents is not None and step.latents is not None:
            latents = self._latents.get(step.latents, step.videos)
            if step.next_latents is not None and step.next_shares is not None:
                following = self._latents.get(step.next_latents, step.videos)
                latents = torch.lerp(latents, following, step.next_shares.view(-1, 1, 1, 1))
        return self._engine.decode(features, units, latents, step.networks, dtype)


@dataclass(frozen=True)
class _StepInputs:
    """A ``PlannedStep`` on the device; its keys count slots of the cache."""

    keys: Tensor
    phase: Tensor
    time: Tensor
    network_time: Tensor
    latents: Tensor | None = None
    next_latents: Tensor | None = None
    next_shares: Tensor | None = None
    networks: Tensor | None = None
    videos: Tensor | None = None


def _read_keyframes(pack: Pack, counts: DecodeCounts, rows: np.ndarray) -> np.ndarray:
    counts.num_keyframes_read += len(rows)
    return pack.keyframes(rows, num_threads=torch.get_num_threads())  # one in a DataLoader's worker


def _take(frames: Tensor, indices: np.ndarray) -> Tensor:
    """Some frames of what was decoded."""
    if np.array_equal(indices, np.arange(len(frames))):
        return frames
    (places,) = upload([indices], frames.device)
    return frames.index_select(0, places)


def checked_device(device: str | torch.device) -> torch.device:
    """A device that is there, with its number; a ValueError says what is wrong with others."""
    try:
        checked = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is no torch device; use 'cpu', 'cuda' or 'cuda:0'") from error
    if checked.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={device!r}: there is no CUDA device here; use device='cpu'")
        checked = torch.device("cuda", torch.cuda.current_device() if checked.index is None else checked.index)
    return checked
