"""From the frames a batch asks for to the units that must be decoded, each once. Index arithmetic on arrays, no tensor.

A plan is made of steps, which the network decodes one by one (or some at once, in threads):

    rows of the frame table, in any order, with repeats
        --> units, each once, ascending --> steps of a bounded size
        --> for each request, its place among all frames that the steps decode
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from neuralloader.backends import Scope, describe_units
from neuralloader.clips import NO_KEY, FrameTable

NO_LATENT = -1  # the latent of a key-frame
NETWORK_COST = 0.5  # of fetching one more network for a step, in units decoded


@dataclass(frozen=True)
class PlannedStep:
    """Units that go through the network together: n of T frames each.

    Attributes:
        rows: (n, T) int64, rows of the frame table.
        keys: (n, 2) int64, rows of the key-frame table, or ``NO_KEY``.
        phase, time: (n, T) float32; network_time: (n, T) float64; as ``Units`` has them.
        latents: (n * T,) int64, rows of the pack's latents, or ``NO_LATENT``.
        next_latents: (n * T,) int64, those of the frames behind, and their shares (n * T,) float32, 0 to 1, in
            ``next_shares``; both None where no times between frames are asked for.
        networks: (V,) int64, the network of every n / V units; None where one network decodes all.
    """

    rows: np.ndarray
    keys: np.ndarray
    phase: np.ndarray
    time: np.ndarray
    network_time: np.ndarray
    latents: np.ndarray
    next_latents: np.ndarray | None
    next_shares: np.ndarray | None
    networks: np.ndarray | None


@dataclass(frozen=True)
class DecodePlan:
    """What to decode for some requests.

    Attributes:
        steps: units in the order they are decoded.
        source: (num_requests,) int64, where each request stands among the frames of all steps, one after another.
        num_frames_used: different frames among the requests.
    """

    steps: tuple[PlannedStep, ...]
    source: np.ndarray
    num_frames_used: int

    @property
    def num_frames_decoded(self) -> int:
        return sum(step.rows.size for step in self.steps)

    @cached_property
    def keys(self) -> np.ndarray:
        """(K,) int64, the key-frames it needs, ascending, none twice."""
        return _without_missing([step.keys for step in self.steps])


class Planner:
    """Plans decoding of the frames of a pack; holds its tables, and knows neither file nor network.

    Args:
        frames: the frame table.
        frames_per_unit: T, 1 or a clip's length.
        scope: "corpus" for one network, "video" for one a video.
        max_units: most units of a step.
        min_units: fewest that a step is cut down to, to give threads something to do.
        powers_of_two: whether steps are powers of two of units, but for a last one that is nearly so: for networks
            that are compiled anew for every size.
    """

    def __init__(
        self,
        frames: FrameTable,
        frames_per_unit: int,
        scope: Scope,
        *,
        max_units: int,
        min_units: int = 1,
        powers_of_two: bool = False,
    ):
        self.frames, self.frames_per_unit = frames, frames_per_unit
        self.scope: Scope = scope
        self.max_units, self.min_units = max_units, min(min_units, max_units)
        self.powers_of_two = powers_of_two

    def plan(self, rows: np.ndarray, num_threads: int = 1) -> DecodePlan:
        """Plan some frames.

        Args:
            rows: (num_requests,) rows of the frame table, in any order, repeats allowed.
            num_threads: steps that will run at once.
        """
        needed, place = np.unique(self._unit_of(rows), return_inverse=True)
        unit_rows = self._rows_of(needed)  # (num_units, T)
        slot = rows - unit_rows[place, 0]
        parts = self._part(unit_rows[:, 0], num_threads)
        first_place = np.full(len(needed), -1)  # of each unit, among the units of all steps
        order = np.concatenate([part for part, _ in parts]) if parts else np.zeros(0, np.int64)
        first_place[order[::-1]] = np.arange(len(order))[::-1]  # a network may repeat its last unit
        return DecodePlan(
            steps=tuple(self._step(unit_rows[part], networks) for part, networks in parts),
            source=first_place[place] * self.frames_per_unit + slot,
            num_frames_used=len(needed) if self.frames_per_unit == 1 else len(np.unique(rows)),
        )

    def plan_between(self, rows: np.ndarray, offsets: np.ndarray) -> DecodePlan:
        """Plan times between frames.

        Args:
            rows: (n,) rows of the frame table, each with a frame of its video behind it.
            offsets: (n,) float, 0 to 1: how far each time lies between its frame and the next.
        """
        order = np.argsort(rows, kind="stable")
        unit_rows = self._rows_of(self._unit_of(rows[order]))
        slot = rows[order] - unit_rows[:, 0]
        parts = self._part(unit_rows[:, 0], 1)
        decoded = np.concatenate([part for part, _ in parts]) if parts else np.zeros(0, np.int64)
        source = np.empty(len(rows), np.int64)
        source[order[decoded[::-1]]] = np.arange(len(decoded))[::-1] * self.frames_per_unit + slot[decoded[::-1]]
        return DecodePlan(
            steps=tuple(self._step(unit_rows[part], networks, offsets[order[part]]) for part, networks in parts),
            source=source,
            num_frames_used=len(rows),
        )

    def _unit_of(self, rows: np.ndarray) -> np.ndarray:
        """The unit of each frame: itself, or its clip."""
        return rows if self.frames_per_unit == 1 else self.frames.clip_of(rows)

    def _rows_of(self, units: np.ndarray) -> np.ndarray:
        """(n, T) int64: rows of the frames of some units; padding repeats a clip's last frame."""
        if self.frames_per_unit == 1:
            return units[:, None]
        first = self.frames.first_of_clip[units]
        last = self.frames.first_of_clip[units + 1] - 1
        return np.minimum(first[:, None] + np.arange(self.frames_per_unit), last[:, None])

    def _part(self, first_rows: np.ndarray, num_threads: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Units, given the first row of each, ascending, in parts that are decoded together; and their networks."""
        if self.scope == "corpus" and self.powers_of_two:
            return [(part, None) for part in part_by_powers(len(first_rows), self.max_units)]
        if self.scope == "corpus":
            return [(part, None) for part in part_evenly(len(first_rows), self.max_units, self.min_units, num_threads)]
        return [*part_by_network(self.frames.video_of(first_rows), self.max_units)]

    def _step(self, rows: np.ndarray, networks: np.ndarray | None, offsets: np.ndarray | None = None) -> PlannedStep:
        units = describe_units(self.frames, rows, self.scope, None if offsets is None else offsets[:, None])
        flat = rows.reshape(-1)
        return PlannedStep(
            rows=rows,
            keys=units.keys,
            phase=units.phase,
            time=units.time,
            network_time=units.network_time,
            latents=self._latents_of(flat),
            next_latents=None if offsets is None else self._latents_of(np.minimum(flat + 1, len(self.frames) - 1)),
            next_shares=None if offsets is None else np.repeat(offsets, rows.shape[1]).astype(np.float32),
            networks=networks,
        )

    def _latents_of(self, rows: np.ndarray) -> np.ndarray:
        return np.where(self.frames.is_key(rows), NO_LATENT, self.frames.latent_row(rows))


def part_evenly(num_units: int, max_units: int, min_units: int, num_threads: int) -> list[np.ndarray]:
    """0 to num_units - 1 in even parts of at most ``max_units``, as many as keep the threads busy to the end.

    Returns:
        Arrays of consecutive numbers, int64.
    """
    if not num_units:
        return []
    num_parts = -(-num_units // max_units)
    in_turns = -(-num_parts // num_threads) * num_threads  # no thread without work while others have some
    num_parts = max(num_parts, min(in_turns, num_units // min_units))
    bounds = np.arange(num_parts + 1) * num_units // num_parts
    return [np.arange(a, b) for a, b in pairwise(bounds)]


def part_by_powers(num_units: int, max_units: int) -> list[np.ndarray]:
    """0 to num_units - 1 in parts that are powers of two, or nearly: padding one up to the next power adds a quarter.

    Args:
        num_units: 0 or more.
        max_units: 1 or more; what is above its own power of two is not used.

    Returns:
        Arrays of consecutive numbers, int64.
    """
    parts, start, largest = [], 0, 1 << (max_units.bit_length() - 1)
    while (rest := num_units - start) > 0:
        above = 1 << (rest - 1).bit_length()
        size = rest if above <= largest and above - rest <= rest // 4 else min(largest, 1 << (rest.bit_length() - 1))
        parts.append(np.arange(start, start + size))
        start += size
    return parts


def part_by_network(network_of_unit: np.ndarray, max_units: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Units in parts, where each belongs to one of many networks.

    The V networks of a part decode equally many units, n. It is chosen so that little is decoded twice (a network with
    fewer units repeats its last) and few networks are fetched twice (one with more units comes again).

    Args:
        network_of_unit: (num_units,) int64, ascending.
        max_units: bound on V * n, but for one network's n.

    Returns:
        For each part, (V * n,) int64 units and (V,) int64 networks.
    """
    if not len(network_of_unit):
        return []
    networks, first, counts = np.unique(network_of_unit, return_index=True, return_counts=True)

    def cost(n: int) -> float:
        return float((-(-counts // n)).sum() * (n + NETWORK_COST))

    most = min(int(counts.max()), max_units)
    n = min(range(1, most + 1), key=cost) if most <= 64 else most
    turns = -(-counts // n)  # how often each network comes
    of_turn = np.repeat(np.arange(len(networks)), turns)
    number = np.arange(len(of_turn)) - np.repeat(np.cumsum(turns) - turns, turns)
    within = np.minimum(number[:, None] * n + np.arange(n), counts[of_turn, None] - 1)  # (turns, n)
    units = first[of_turn, None] + within
    step = max(1, max_units // n)
    return [
        (units[start : start + step].ravel(), networks[of_turn[start : start + step]])
        for start in range(0, len(of_turn), step)
    ]


def group_steps(steps: Sequence[PlannedStep], max_keys: int) -> list[list[PlannedStep]]:
    """Steps in runs that need at most so many key-frames together; a step that needs more is a run of its own."""
    groups: list[list[PlannedStep]] = []
    keys: set[int] = set()
    for step in steps:
        own = set(_without_missing([step.keys]).tolist())
        if not groups or len(keys | own) > max_keys:
            groups.append([])
            keys = set()
        groups[-1].append(step)
        keys |= own
    return groups


def _without_missing(keys: Sequence[np.ndarray]) -> np.ndarray:
    every = np.unique(np.concatenate([part.ravel() for part in keys])) if keys else np.zeros(0, np.int64)
    return every[every != NO_KEY]
