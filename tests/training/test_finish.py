"""The last step of a budget, with files that are only counted: what is grown, what trimmed, what left as it is."""

import numpy as np
import pytest

from neuralloader.packfile.latents import RoundedLatents, latent_bytes, round_latents
from neuralloader.training.finish import SLACK_BYTES, Contents, meet_budget
from neuralloader.training.growth import Grown

PER_CLIP = np.array([8, 8])
VALUES = np.random.default_rng(0).normal(0, 6, (16, 4, 3, 4)).astype(np.float32)
LATENTS = round_latents(VALUES, None)
LATENT_BYTES = latent_bytes(LATENTS, PER_CLIP)
OTHERS = 1000  # bytes of a file that are neither key-frames nor latents


class Files:
    """Writes trial files, or rather their sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def save(self, contents: Contents) -> int:
        latents = 0 if contents.latents is None else latent_bytes(contents.latents, PER_CLIP)
        self.sizes.append(OTHERS + sum(map(len, contents.keyframes)) + latents)
        return self.sizes[-1]


@pytest.fixture
def files() -> Files:
    return Files()


def _contents(keyframe_bytes: int = 1000, latents: RoundedLatents | None = LATENTS) -> Contents:
    return Contents([bytes(keyframe_bytes)], 50, latents)


def _must_not_grow(more_bytes: int) -> Grown:
    raise AssertionError("it fits")


def test_what_fits_is_left_as_it_is(files: Files) -> None:
    contents = _contents()
    budget = files.save(contents) + SLACK_BYTES
    met = meet_budget(
        contents, budget, save=files.save, latent_values=VALUES, latents_per_clip=PER_CLIP, grow=_must_not_grow
    )
    assert met is contents
    assert len(files.sizes) == 2


def test_what_is_too_large_loses_of_its_latents_as_little_as_it_takes(files: Files) -> None:
    budget = files.save(_contents()) - LATENT_BYTES // 3
    met = meet_budget(
        _contents(), budget, save=files.save, latent_values=VALUES, latents_per_clip=PER_CLIP, grow=_must_not_grow
    )
    assert 0.97 * budget < files.sizes[-1] <= budget - SLACK_BYTES
    assert met.latents is not None
    assert 0 < np.count_nonzero(met.latents.symbols) < np.count_nonzero(LATENTS.symbols)
    assert files.save(met) == files.sizes[-2], "what is returned was saved last"


def test_what_is_too_small_gets_better_key_frames_and_then_fits_exactly(files: Files) -> None:
    """Also where these took more than they were given: latents make up for it."""
    budget = files.save(_contents()) + 800
    asked: list[int] = []

    def grow(more_bytes: int) -> Grown:
        asked.append(more_bytes)
        return Grown([bytes(1000 + more_bytes + 90)], 70, more_bytes + 90)

    met = meet_budget(_contents(), budget, save=files.save, latent_values=VALUES, latents_per_clip=PER_CLIP, grow=grow)
    assert asked == [800 - SLACK_BYTES]
    assert met.keyframe_quality == 70
    assert 0.97 * budget < files.sizes[-1] <= budget - SLACK_BYTES


def test_without_growth_a_small_file_stays_small(files: Files) -> None:
    contents = _contents()
    budget = 2 * files.save(contents)
    met = meet_budget(contents, budget, save=files.save, latent_values=VALUES, latents_per_clip=PER_CLIP, grow=None)
    assert met is contents


@pytest.mark.parametrize("latents", [LATENTS, None])
@pytest.mark.parametrize("latent_values", [VALUES, None])
def test_what_cannot_be_met_stays_as_it_was(
    files: Files, latents: RoundedLatents | None, latent_values: np.ndarray | None
) -> None:
    """No latents to trim, latents on a grid, or more to save than all of them: the caller sees the size."""
    contents = _contents(latents=latents)
    met = meet_budget(
        contents, OTHERS, save=files.save, latent_values=latent_values, latents_per_clip=PER_CLIP, grow=None
    )
    assert met is contents
