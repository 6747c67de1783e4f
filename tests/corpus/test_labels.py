"""Labels are places among the sorted class names, whatever a list says."""

from typing import Any

import numpy as np
import pytest

from neuralloader.clips import UNLABELLED
from neuralloader.corpus.labels import Label, label_classes


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["run", "Jump", "run"], ("Jump", "run"), [1, 0, 1]),
        ([9, 10, np.int64(2)], ("2", "9", "10"), [1, 2, 0]),
        (["9", "10", "2"], ("2", "9", "10"), [1, 2, 0]),
        (["9", "10", "b"], ("10", "9", "b"), [1, 0, 2]),
        ([None, "a"], ("a",), [UNLABELLED, 0]),
        ([None, None], (), [UNLABELLED, UNLABELLED]),
        ([-1, 3], ("-1", "3"), [0, 1]),
        ([], (), []),
    ],
)
def test_names_in_order(labels: list[Label], classes: tuple[str, ...], expected: list[int]) -> None:
    assert label_classes(labels) == (classes, expected)


@pytest.mark.parametrize("label", [1.5, True, b"a", ["a"]])
def test_labels_of_other_types(label: Any) -> None:
    with pytest.raises(ValueError, match="must be a class name, an integer or None"):
        label_classes(["a", label])


def test_empty_label() -> None:
    with pytest.raises(ValueError, match="label='' is empty; None is no label"):
        label_classes([""])
