"""Class names and label numbers: labels are places in the sorted list of names."""

from collections.abc import Sequence

from neuralloader.clips import UNLABELLED

Label = str | int | None  # a class name, a number that stands for one, or none


def label_classes(labels: Sequence[Label]) -> tuple[tuple[str, ...], list[int]]:
    """The classes that labels name, and the place of each label among them.

    Args:
        labels: of each video. Integers (also as text, where all are) become names in the order of the numbers, so that
            9 comes before 10; names are sorted as text.

    Returns:
        The class names, and for each video an index into them, or ``UNLABELLED`` for None.

    Raises:
        ValueError: a label is neither text, nor an integer, nor None, or it is empty.
    """
    names: list[str | None] = []
    for label in labels:
        if label is None or isinstance(label, str):
            names.append(label)
        elif hasattr(label, "__index__") and not isinstance(label, bool):  # NumPy's integers are welcome
            names.append(str(label.__index__()))
        else:
            raise ValueError(f"label={label!r} must be a class name, an integer or None")
        if names[-1] == "":
            raise ValueError("label='' is empty; None is no label")
    distinct = {name for name in names if name is not None}
    classes = sorted(distinct, key=int) if all(map(is_integer, distinct)) else sorted(distinct)
    index_of = {name: index for index, name in enumerate(classes)}
    return tuple(classes), [UNLABELLED if name is None else index_of[name] for name in names]


def is_integer(text: str) -> bool:
    """Whether a text is a whole number written as ``str`` writes it, with or without zeros in front."""
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()
