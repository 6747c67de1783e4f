"""A TSM training step fed by the loader: the share of a step that is spent waiting for it."""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.ladder import FAST
from benchmarks.gpu.result import Part, Report, Row
from benchmarks.gpu.setting import COMPILED_GRAPHED, EAGER, FRAMES_PER_CLIP, GRAPHED, Setting
from neuralloader.loading.loader import NeuralVideoLoader
from neuralloader.metrics.speed import wait_for
from neuralloader.report.consumer import Consumer, ConsumerName

NUM_CLASSES = 101
COMPILE_SECONDS = 75.0
Batch = tuple[Tensor, Tensor]


def feed_consumer(setting: Setting, report: Report) -> Part:
    """Train from each source in turn."""
    sizes, device = setting.sizes, setting.device
    height, width = sizes.training_size
    part = Part(
        f"Training {sizes.consumer} with temporal shift from the loader",
        f"{sizes.batch} clips of {FRAMES_PER_CLIP} frames of {height}x{width}, forward, backward and step in bfloat16. "
        "The share is what a step takes longer than with its data on the device; 'host waits' is the part of a step in "
        "which the host waits for the next batch (the device may still have work).",
    )
    consumer = Consumer(cast(ConsumerName, sizes.consumer), NUM_CLASSES, FRAMES_PER_CLIP, device)
    shape = (sizes.batch, FRAMES_PER_CLIP, 3, height, width)
    labels = torch.zeros(sizes.batch, dtype=torch.int64, device=device)
    resident = torch.randint(0, 255, shape, dtype=torch.uint8, device=device)
    raw = torch.randint(0, 255, (3, *shape), dtype=torch.uint8)
    raw = raw.pin_memory() if setting.is_cuda else raw

    def in_memory() -> Iterator[Batch]:
        while True:
            yield resident, labels

    def uploaded() -> Iterator[Batch]:
        number = 0
        while True:
            yield raw[number % len(raw)].to(device, non_blocking=True), labels
            number += 1

    sources: dict[str, Callable[[], Iterable[Any]]] = {
        "data on the device": in_memory,
        "raw uint8 in pinned memory": uploaded,
    }
    for mode in (EAGER, GRAPHED, COMPILED_GRAPHED):
        why_not = setting.why_not(mode, COMPILE_SECONDS if mode.compile else 10)
        if why_not:
            part.rows.append({"source": f"pack, {mode.name}", "result": why_not})
            continue
        try:
            dataset = setting.open(FAST, mode, size=sizes.training_size)
            items = np.resize(
                np.arange(len(dataset)), sizes.batch * (sizes.warm_up_steps + sizes.training_steps)
            ).tolist()
            for prefetch in (0, 2):
                loader = NeuralVideoLoader(dataset, batch_size=sizes.batch, sampler=items, seed=0, prefetch=prefetch)
                sources[f"pack, {mode.name}, prefetch {prefetch}"] = lambda loader=loader: loader
        except Exception as error:
            part.fail({"source": f"pack, {mode.name}"}, error)
    _measure(setting, part, sources, consumer)
    report(part)
    return part


def _measure(setting: Setting, part: Part, sources: dict[str, Callable[[], Iterable[Any]]], consumer: Consumer) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for number in range(1 + setting.sizes.rounds):  # the first is a rehearsal
        if number > 1 and setting.seconds_left() < 5:
            break
        for name, source in list(sources.items()):
            try:
                seconds = _train(source(), consumer, setting)
            except Exception as error:
                part.fail({"source": name}, error)
                del sources[name], found[name]
                continue
            if number:
                found[name].append(seconds)
    alone = None
    for name, turns in found.items():
        if not turns:
            part.rows.append({"source": name, "result": "no time left"})
            continue
        step, waited = np.median(turns, axis=0).tolist()
        alone = step if alone is None else alone
        row: Row = {"source": name, "step ms": 1e3 * step, "share waiting": max(0.0, 1 - alone / step)}
        part.rows.append({**row, "host waits": waited / step, "clips/s": setting.sizes.batch / step, "result": "ok"})


def _train(source: Iterable[Any], consumer: Consumer, setting: Setting) -> tuple[float, float]:
    """Seconds a step takes, and seconds of it that the host waits for a batch; steps are not waited for."""
    steps = setting.sizes.training_steps
    batches = iter(source)
    for videos, labels in islice(batches, setting.sizes.warm_up_steps):
        _step(consumer, videos, labels, setting)
    wait_for(setting.device)
    start, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        videos, labels = next(batches)
        waited += time.perf_counter() - asked
        _step(consumer, videos, labels, setting)
    wait_for(setting.device)
    return (time.perf_counter() - start) / steps, waited / steps


def _step(consumer: Consumer, videos: Tensor, labels: Tensor, setting: Setting) -> None:
    with torch.autocast(setting.device.type, torch.bfloat16):
        consumer.step(videos, labels)
