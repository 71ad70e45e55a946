# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files that are complete, or as they were."""

import os
import stat
from pathlib import Path

import pytest

from yolo_lossplug.files import read_json, write_json, write_text


def test_a_file_is_complete_or_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "made" / "one.json"
    write_json(file, {"a": [1.5, None]})
    assert read_json(file) == {"a": [1.5, None]} and file.read_bytes().endswith(b"}\n")
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(file, "other")
    assert read_json(file) == {"a": [1.5, None]} and [*file.parent.iterdir()] == [file]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_others_may_read_what_is_written(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("", encoding="utf-8")
    assert stat.S_IMODE(write_text(tmp_path / "text", "").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
