"""The layout takes nothing on trust: JSON, names, versions, offsets; what it writes, it can read."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralloader.container import layout
from neuralloader.container.layout import (
    MAX_JSON_DEPTH,
    TensorEntry,
    canonical_json,
    check_tensor_name,
    dtype_name,
    header_size,
    parse_json,
    read_header,
    section_of,
    sha256_hex,
    write_header,
)
from neuralloader.errors import PackError, PackVersionError

_ENTRIES = {
    "videos.rate": TensorEntry("F64", (), 0, 8, "a" * 64),
    "weights.codes": TensorEntry("U8", (2, 2), 8, 12, "b" * 64),
}

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(_JSON)
def test_canonical_json_comes_back_and_ignores_the_order_of_keys(value):
    text = canonical_json(value)
    assert text.isascii()
    assert parse_json(text.encode(), "it") == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


def test_canonical_json_has_one_spelling():
    assert canonical_json({"b": (1, 2.5), "a": "ä"}) == '{"a":"\\u00e4","b":[1,2.5]}'


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [float("nan")]}, r"manifest\.a\[0\] is nan; JSON has only finite numbers"),
        ({"a": {1: 2}}, r"manifest\.a has the key 1; keys must be strings"),
        ({"a": np.zeros(2)}, r"manifest\.a is a ndarray; JSON has strings"),
        ({"a": np.int64(3)}, r"manifest\.a is a int64; JSON has strings"),
        ({"a": 2**64}, r"manifest\.a is 18446744073709551616, which does not fit 64 bits"),
    ],
)
def test_values_that_json_cannot_say_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        canonical_json(value)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_is_bounded_alike_in_both_directions(opening):
    def nested(depth):
        value = 1
        for _ in range(depth):
            value = [value] if opening == "[" else {"a": value}
        return value

    assert parse_json(canonical_json(nested(MAX_JSON_DEPTH)).encode(), "it") == nested(MAX_JSON_DEPTH)
    with pytest.raises(ValueError, match=f"nested more than {MAX_JSON_DEPTH} deep"):
        canonical_json(nested(MAX_JSON_DEPTH + 1))
    with pytest.raises(PackError, match=f"it is damaged: it is nested more than {MAX_JSON_DEPTH} deep"):
        parse_json(json.dumps(nested(MAX_JSON_DEPTH + 1)).encode(), "it")


def test_depth_bombs_and_strings_of_brackets():
    with pytest.raises(PackError, match="nested more than"):
        parse_json(b"[" * 1_000_000, "it")
    with pytest.raises(PackError, match="nested more than"):
        parse_json(b'{"a":' * 1_000_000, "it")
    text = '[[["' * 100
    assert parse_json(json.dumps([text]).encode(), "it") == [text]
    with pytest.raises(PackError, match="it is damaged"):
        parse_json(b'"\\"' * 500_000, "it")  # ends fast: the search for strings does not run twice over any part


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a":1,"a":1}', "the header is damaged: the key 'a' comes twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "the number 1e999 is too large"),
        (b"[" + b"9" * 5000 + b"]", r"the number 9{20} does not fit 64 bits"),
        (b"[99999999999999999999]", r"the number 9{20} does not fit 64 bits"),
        (b"[1", "the header is damaged"),
        (b'"\xff"', "the header is damaged"),
        (b"", "the header is damaged"),
    ],
)
def test_broken_json_is_refused(text, message):
    with pytest.raises(PackError, match=message):
        parse_json(text, "the header")


def test_sections():
    names = ["weights.a", "scales.a", "latents.data", "keyframes.data", "keys.frame", "weightsx.a", "header.a"]
    assert [section_of(name) for name in names] == [
        "weights", "scales", "latents", "keyframes", "tables", "tables", "tables",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a", "a..b", ".a", "a.", "a.b/c", "a.ä", "", "__metadata__", "a." + "b" * 200])
def test_odd_names_are_refused(name):
    with pytest.raises(ValueError, match=r"^tensor name .* must be 2 or more words"):
        check_tensor_name(name)


def test_dtypes():
    assert dtype_name(np.dtype(">f4")) == "F32"
    with pytest.raises(ValueError, match="dtype complex64 must be one of uint8, int8"):
        dtype_name(np.dtype(np.complex64))


def _read(head: bytes, size: int = 12):
    file_size = len(head) + size
    return read_header(head[8 : 8 + header_size(head[:8], file_size)], file_size)


def test_header_round_trip():
    head = write_header({"note": "ä"}, _ENTRIES)
    header = _read(head)
    assert header.tensors == _ENTRIES
    assert header.data_start == len(head)
    assert len(head) % 8 == 0
    assert header.manifest["note"] == "ä"
    assert (header.manifest["format"], header.manifest["version"]) == ("nvpack", 1)
    assert header.manifest["tensors"]["weights.codes"] == ["U8", [2, 2], "b" * 64]


def test_the_writer_fills_in_its_own_keys():
    with pytest.raises(ValueError, match="the manifest keys tensors, version are filled in by the writer"):
        write_header({"version": 1, "tensors": {}}, {})


def test_a_header_over_the_limit_is_not_written(monkeypatch):
    monkeypatch.setattr(layout, "MAX_HEADER_BYTES", 100)
    with pytest.raises(ValueError, match=r"the header takes \d+ bytes, where 100 are allowed"):
        write_header({}, _ENTRIES)


def test_lengths_are_checked_before_the_header_is_read():
    with pytest.raises(PackError, match="too short for a pack: it has 3 bytes"):
        header_size(b"abc", 3)
    with pytest.raises(PackError, match=f"declares a header of {2**64 - 1} bytes"):
        header_size(b"\xff" * 8, 10**9)
    with pytest.raises(PackError, match="truncated: its header ends at byte 108, the file at 107"):
        header_size((100).to_bytes(8, "little"), 107)


def _forge(edit_document=None, edit_manifest=None, size: int = 12):
    """Read a header after an edit, with all hashes made good again, as an attacker would."""
    head = write_header({}, _ENTRIES)
    document = json.loads(head[8:])
    manifest = json.loads(document["__metadata__"]["neuralloader"])
    if edit_document:
        edit_document(document)
    if edit_manifest:
        edit_manifest(manifest)
    text = json.dumps(manifest)
    document["__metadata__"] = {"neuralloader": text, "neuralloader.sha256": sha256_hex(text.encode())}
    header = json.dumps(document).encode()
    return read_header(header, 8 + len(header) + size)


def test_a_forged_but_sound_header_is_read():
    assert _forge().tensors == _ENTRIES  # JSON with spaces, by another program
    assert _forge(edit_manifest=lambda m: m.update(extra=1)).manifest["extra"] == 1


def _set(name, key, value):
    return lambda document: document[name].__setitem__(key, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("weights.codes", "dtype", "BF16"), "weights.codes has dtype 'BF16', not one of U8"),
        (_set("weights.codes", "dtype", ["U8"]), r"has dtype \['U8'\], not one of"),
        (_set("weights.codes", "dtype", "I8"), r"weights.codes is I8 \[2, 2\] in the header, but"),
        (_set("weights.codes", "shape", [4]), r"weights.codes is U8 \[4\] in the header, but"),
        (_set("weights.codes", "shape", [2, True]), "has shape .*, not at most 8 sizes"),
        (_set("weights.codes", "shape", [1] * 9), "has shape .*, not at most 8 sizes"),
        (_set("weights.codes", "shape", [-2, -2]), "has shape .*, not at most 8 sizes"),
        (_set("weights.codes", "shape", [2**63, 2**63]), "has shape .*, not at most 8 sizes that an array can have"),
        (_set("weights.codes", "shape", [2**29, 2**29]), "has 4 bytes, but its dtype and shape need"),
        (_set("weights.codes", "data_offsets", [8]), "not two positions"),
        (_set("weights.codes", "data_offsets", [8, 12.0]), "not two positions"),
        (_set("weights.codes", "data_offsets", [12, 8]), "has -4 bytes"),
        (_set("weights.codes", "data_offsets", [4, 8]), "starts at byte 4 of the data, where 8 is next"),
        (_set("weights.codes", "data_offsets", [9, 13]), "starts at byte 9 of the data, where 8 is next"),
        (_set("weights.codes", "extra", 1), "must have dtype, shape and data_offsets"),
        (lambda d: d.update({"weights.codes": 3}), "must have dtype, shape and data_offsets"),
        (lambda d: d.pop("weights.codes"), "'weights.codes' is in only one of header and manifest"),
        (lambda d: d.update({"a.b": 1}), "'a.b' is in only one of header and manifest"),
    ],
)
def test_forged_headers_are_refused(edit, message):
    with pytest.raises(PackError, match=message):
        _forge(edit_document=edit)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(format="tar"), "its manifest does not say format 'nvpack'"),
        (lambda m: m.update(version="1"), "version must be a number from 1, not '1'"),
        (lambda m: m.update(version=True), "version must be a number from 1, not True"),
        (lambda m: m.pop("tensors"), "no table of tensors"),
        (lambda m: m["tensors"].update({"weights.codes": ["U8", [2, 2]]}), "weights.codes is U8"),
        (lambda m: m["tensors"].update({"weights.codes": ["U8", [2, 2], 5]}), "weights.codes is U8"),
    ],
)
def test_forged_manifests_are_refused(edit, message):
    with pytest.raises(PackError, match=message):
        _forge(edit_manifest=edit)


def test_names_are_checked_in_strangers_headers():
    def rename(table):
        table["../x"] = table.pop("weights.codes")

    with pytest.raises(PackError, match=r"tensor name '\.\./x' must be"):
        _forge(edit_document=rename, edit_manifest=lambda m: rename(m["tensors"]))


def test_a_newer_version_is_refused_by_both_names():
    with pytest.raises(PackVersionError, match=r"format version 2, this neuralloader reads up to 1; install a newer"):
        _forge(edit_manifest=lambda m: m.update(version=2, tensors="of another kind"))


def test_the_file_must_end_with_the_last_tensor():
    with pytest.raises(PackError, match=r"should be \d+ bytes long, but the file has"):
        _forge(size=13)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"[1]", "the header must be a JSON object, not list"),
        (b"{}", "this is no pack: its metadata lacks 'neuralloader' or 'neuralloader.sha256'"),
        (b'{"__metadata__":{"format":"pt"}}', "is it another safetensors file"),
        (b'{"__metadata__":{"neuralloader":"{}","neuralloader.sha256":"00"}}', "do not match its sha256"),
        (b'{"__metadata__":{"neuralloader":"\\ud800","neuralloader.sha256":"00"}}', "do not match its sha256"),
    ],
)
def test_other_safetensors_files_are_told_apart(document, message):
    with pytest.raises(PackError, match=message):
        read_header(document, 8 + len(document))
