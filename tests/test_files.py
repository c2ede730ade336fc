"""Whole files or nothing, and one sentence for each way it can go wrong."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_dspark.files import (
    atomic_write,
    decode_record,
    make_folder,
    read_json,
    read_record,
    read_text,
    write_json,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    seconds: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Record:
    name: str
    count: int = 0
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count {self.count} must be at least 0")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


def one_sentence(error: pytest.ExceptionInfo[ValueError], path: Path) -> str:
    """The message, checked to be one line that begins with the file."""
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.law
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON)
def test_json_comes_back_as_it_went(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert names_in(tmp_path) == ["value.json"]


@pytest.mark.example
def test_records_come_back_as_they_went(tmp_path: Path) -> None:
    record = Record(
        name="a", count=3, inner=Inner(seconds=0.5), many=(Inner(),), named={"x": Inner()}
    )
    write_json(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json", Record) == record


@pytest.mark.example
def test_a_block_that_ends_well_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["out.txt"]


@pytest.mark.example
def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "out.bin", "wb") as file:
        file.write(b"\xff\n")
    assert (tmp_path / "out.bin").read_bytes() == b"\xff\n"


@pytest.mark.example
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [True, False])
def test_a_block_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, failure: type[BaseException], existing: bool
) -> None:
    path = tmp_path / "out.txt"
    if existing:
        path.write_text("old")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write("half of it")
            file.flush()
            raise failure("stop")

    with pytest.raises(failure, match="stop"):
        interrupted()
    assert names_in(tmp_path) == (["out.txt"] if existing else [])
    assert not existing or path.read_text() == "old"


@pytest.mark.example
def test_a_value_json_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "out.json", {"seconds": float("nan")})
    assert names_in(tmp_path) == []


@pytest.mark.example
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(ValueError, match="No space left on device; check the path") as caught:
        write_json(path, [1, 2, 3])
    one_sentence(caught, path)
    assert names_in(tmp_path) == ["out.txt"]
    assert path.read_text() == "old"


@pytest.mark.example
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_fills_up_while_writing_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary file is a link to /dev/full, which refuses the write itself."""
    path = tmp_path / "out.txt"
    (tmp_path / f"out.txt.tmp-{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(ValueError, match="No space left on device") as caught:
        write_json(path, list(range(10_000)))
    one_sentence(caught, path)
    assert names_in(tmp_path) == []


@pytest.mark.example
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot write: Permission denied") as caught:
        write_json(tmp_path / "out.json", {})
    one_sentence(caught, tmp_path / "out.json")


@pytest.mark.example
def test_a_refused_file_is_one_sentence_whoever_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only file system, where removing what is not there is refused as well."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(ValueError, match="cannot write: Read-only file system") as caught:
        write_json(tmp_path / "out.json", {})
    one_sentence(caught, tmp_path / "out.json")


@pytest.mark.example
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("missing/out.json", "No such file or directory"),
        ("a-file/out.json", "Not a directory"),
        ("a-folder", "not a plain file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_path_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, place: str, reason: str
) -> None:
    (tmp_path / "a-file").write_text("kept")
    (tmp_path / "a-folder").mkdir()
    with pytest.raises(ValueError, match=reason) as caught:
        write_json(tmp_path / place, {})
    one_sentence(caught, tmp_path / place)
    assert names_in(tmp_path) == ["a-file", "a-folder"]
    assert (tmp_path / "a-file").read_text() == "kept"


@pytest.mark.example
def test_a_device_is_never_replaced_by_a_file() -> None:
    with pytest.raises(ValueError, match="/dev/null: cannot write: not a plain file"):
        write_json("/dev/null", {})
    assert not Path("/dev/null").is_file()


@pytest.mark.example
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", ":1: not valid JSON (Expecting value, column 1); mend it"),
        (b'{"a": 1', ":1: not valid JSON"),
        (b'{\n "a": 1,\n}', ":3: not valid JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number; give a finite value"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is not a JSON number; give a finite value"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8; save it as UTF-8"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        read_json(path)
    one_sentence(caught, path)


@pytest.mark.example
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read: No such file or directory; check") as caught:
        read_text(tmp_path / "absent.json")
    one_sentence(caught, tmp_path / "absent.json")
    with pytest.raises(ValueError, match="cannot read: Is a directory"):
        read_text(tmp_path)


@pytest.mark.example
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"name": "a", "cuont": 1}, "here: unknown key 'cuont'; did you mean 'count'?"),
        ({"name": "a", "zzz": 1}, "here: unknown key 'zzz'; known keys: name, count, inner,"),
        ({"name": "a", "inner": {"second": 1}}, "here: inner: unknown key 'second'; did you mean"),
        ({"name": "a", "many": [{}, {"x": 1}]}, "here: many[1]: unknown key 'x'; known keys"),
        ({"name": "a", "named": {"k": {"x": 1}}}, "here: named: k: unknown key 'x'; known keys"),
        ({}, "here: Object missing required field `name`"),
        ({"name": 3}, "here: Expected `str`, got `int` - at `$.name`"),
        ({"name": "a", "count": "3"}, "here: Expected `int`, got `str`"),
        ({"name": "a", "count": 3.5}, "here: Expected `int`, got `float`"),
        ({"name": "a", "count": True}, "here: Expected `int`, got `bool`"),
        ({"name": "a", "count": -1}, "here: count -1 must be at least 0"),
        ([], "here: Expected `object`, got `array`"),
        (None, "here: Expected `object`, got `null`"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_with_the_key(value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match="here: ") as caught:
        decode_record(value, Record, where="here")
    assert sentence in str(caught.value)


@pytest.mark.example
def test_a_folder_is_made_with_its_parents_or_refused(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the folder: File exists"):
        make_folder(tmp_path / "file")
    with pytest.raises(ValueError, match="cannot make the folder: Not a directory"):
        make_folder(tmp_path / "file" / "below")


@pytest.mark.example
def test_json_is_indented_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "out.json", Inner())
    assert (tmp_path / "out.json").read_text() == '{\n "seconds": 1.0\n}\n'
    assert json.loads((tmp_path / "out.json").read_text()) == {"seconds": 1.0}
