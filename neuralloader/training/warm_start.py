"""Start a training from the network of another pack."""

import os
from dataclasses import asdict
from typing import Any

from neuralloader.backends import Backend
from neuralloader.packfile import Pack

MAX_TOLD = 5


def load_network(backend: Backend, path: str | os.PathLike[str], name: str, config: str, network: Any) -> None:
    """Give an untrained backend the weights of a pack, and its encoder where the pack holds one.

    What a pack does not hold (an encoder that was left out, estimates of what latents cost) stays as it is.

    Args:
        backend: it is changed in place.
        path: the pack, or its URL.
        name, config, network: of the backend; the pack's must be the same.

    Raises:
        FileNotFoundError: there is no such pack.
        PackError: it is damaged.
        ValueError: its network is another, with what differs.
    """
    pack = Pack(path)
    theirs = pack.description
    mine = {"backend": name, "config": config, **asdict(network)}
    other = {"backend": theirs.backend, "config": theirs.config, **asdict(theirs.network)}
    if theirs.scope != "corpus":
        raise ValueError(f"init: {path} has a network for each video; training starts from one for a corpus")
    differ = [f"{key} is {other.get(key)}, not {value}" for key, value in mine.items() if other.get(key) != value]
    if differ:
        raise ValueError(
            f"init: {path} has another network: {'; '.join(differ[:MAX_TOLD])}. Pack with its backend, size and width "
            "(`neuralloader info` tells them)"
        )
    trained = pack.load_backend(with_encoder=pack.is_appendable)
    backend.load_state_dict(trained.state_dict(), strict=False)
