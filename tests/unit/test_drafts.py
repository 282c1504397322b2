"""Whoever reads sees the old file or the new one, and nothing is left lying about."""

from __future__ import annotations

import stat

import pytest

from inferscope.drafts import draft


def test_it_takes_the_place_of_the_file_when_the_block_ends(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with draft(path) as first, draft(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
        assert path.read_text() == "old"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
    beside = tmp_path / "beside"
    beside.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(beside.stat().st_mode)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_the_old_file_and_passes_through(tmp_path, error):
    path = tmp_path / "record.json"
    path.write_text("old")

    def fail():
        with draft(path) as unfinished:
            unfinished.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_names_can_be_still_has_a_draft(tmp_path):
    path = tmp_path / ("n" * 250)
    with draft(path) as unfinished:
        unfinished.write_text("whole")
    assert path.read_text() == "whole"


def test_without_its_folder_there_is_no_draft(tmp_path):
    with pytest.raises(FileNotFoundError), draft(tmp_path / "missing" / "file"):
        pass
