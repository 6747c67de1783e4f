"""What a request says of the settings; what they refuse is in ``test_packer``."""

import dataclasses
import json
from pathlib import Path

from neuralloader import Duration, PackSettings
from neuralloader.training import settings as settings_module
from neuralloader.training.budget import Budget

CHANGED = {
    "init": Path("other.nvpack"),
    "annotations": ("train.txt",),
    "budget": Budget(bits_per_pixel=0.1),
    "duration": Duration(epochs=3),
    "target_psnr_db": 30.0,
    "resize": "pad",
}


def test_a_request_is_json_and_tells_what_decides_the_pack() -> None:
    request = PackSettings().request()
    assert json.loads(json.dumps(request)) == json.loads(json.dumps(PackSettings().request()))
    for name, value in CHANGED.items():
        changed = PackSettings(**{name: value}).request()  # pyright: ignore[reportArgumentType]
        json.dumps(changed)
        assert [field for field in request if request[field] != changed[field]] == [name]


def test_what_decides_nothing_is_not_asked() -> None:
    usual = PackSettings()
    other = PackSettings(cache=Path("x"), overwrite=True, fresh=True, checkpoint_seconds=1.0, tensorboard=True)
    assert usual.request() == other.request()
    fields = {field.name for field in dataclasses.fields(PackSettings)}
    assert set(settings_module._NOT_ASKED) <= fields, "each is a setting"
