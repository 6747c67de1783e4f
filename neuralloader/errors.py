"""The exceptions of neuralloader. Each takes one string, so that it survives pickling from a worker process."""


class PackError(ValueError):
    """Something is wrong with a pack: damaged, truncated, hostile, or beyond what this reader understands."""


class PackVersionError(PackError):
    """The pack was written in a format version that this reader does not know."""


class SourceError(RuntimeError):
    """A source video cannot be decoded."""
