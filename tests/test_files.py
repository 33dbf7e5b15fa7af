from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlp_lab.files import PARTIAL, whole_file


def test_whole_file_keeps_the_former_content_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(AttributeError), whole_file(path) as file:
        file.write("half").fails()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_whole_file_writes_bytes_and_text_as_given(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a", binary=True, sync=True) as file:
        file.write(b"\x00\r\n")
    with whole_file(tmp_path / "b", mode=0o600) as file:
        file.write("ä\r\n\udcff")
        assert [path.name[:3] for path in tmp_path.glob(PARTIAL)] == [".b."]
    assert (tmp_path / "a").read_bytes() == b"\x00\r\n"
    assert (tmp_path / "b").read_bytes() == "ä\r\n".encode() + b"\xff"
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600


def test_whole_file_does_not_follow_a_planted_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * count)  # as if the name could be guessed
    (tmp_path / ".a.0000.partial").symlink_to(victim)
    with pytest.raises(FileExistsError), whole_file(tmp_path / "a") as file:
        file.write("theirs")
    assert victim.read_text() == "mine"
    (tmp_path / "b").symlink_to(victim)
    with whole_file(tmp_path / "b") as file:
        file.write("result")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "b").is_symlink()
