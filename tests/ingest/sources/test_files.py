"""Files, folders and globs that a user names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from index.errors import SourceDenied, SourceNotFound
from ingest.sources.files import expand, fetched
from tests.support.footage import make_video


@pytest.mark.system
def test_a_file_without_permission_to_read_it(tmp_path: Path) -> None:
    path = tmp_path / "locked.mp4"
    make_video(path, seconds=1)
    path.chmod(0)
    code = (
        "import os, sys, pathlib\n"
        "from ingest.sources.files import fetched\n"
        "from index.errors import SourceNotFound\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try:\n    fetched(sys.argv[1]).__enter__()\nexcept SourceNotFound as e: print(e)\n"
    )
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert "permission" in done.stdout or "Permission" in done.stdout, done.stderr


def test_folders_and_globs_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.mp4", "deep/b.MKV", "notes.txt", ".hidden", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [Path(f).name for f in expand([tmp_path]).files] == ["a.mp4", "b.MKV"]
    assert [Path(f).name for f in expand([tmp_path / "*.mp4", tmp_path / "a.mp4"]).files] == ["a.mp4"]
    problems = expand([tmp_path / "none", "ftp://user:secret@host/x.mp4", tmp_path / "*.avi"]).problems
    assert [type(error) for _, error in problems] == [SourceNotFound, SourceDenied, SourceNotFound]
    assert not any("secret" in name + str(error) for name, error in problems)


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # nobody writes to it
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero")):
        with pytest.raises(SourceNotFound, match="not a regular file; name a file"), fetched(str(path)):
            pass
    with pytest.raises(SourceNotFound, match="is a folder; name a file in it"), fetched(str(tmp_path)):
        pass
