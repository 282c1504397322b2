import sys

import pytest

from inferscope.errors import CacheUnwritableError, MissingExtraError, SettingError
from inferscope.experiments import demo
from inferscope.experiments.demo import DemoOptions


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens 0"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"dtype": "int8"}, "--dtype int8"),
        ({"prompt": "\n "}, "--prompt"),
    ],
)
def test_what_cannot_work_is_refused_by_name(wrong, named):
    with pytest.raises(SettingError, match=named):
        DemoOptions(**wrong).check()


def test_the_defaults_are_accepted():
    DemoOptions().check()


def test_a_folder_in_the_way_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheUnwritableError, match="--out"):
        demo._writable(tmp_path / "file" / "out")


def test_without_exporters_the_demo_goes_on_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "google.protobuf.json_format", None)
    providers, files = demo._outlets(DemoOptions(), tmp_path)
    assert providers is None
    assert files[0].startswith("no spans: ")
    assert "extra [otlp]" in files[0]


def test_without_exporters_an_endpoint_that_was_asked_for_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "google.protobuf.json_format", None)
    with pytest.raises(MissingExtraError):
        demo._outlets(DemoOptions(endpoint="http://localhost:4317"), tmp_path)


def test_what_the_model_says_cannot_steer_the_terminal():
    assert demo._printable("one\x1b[2J\x07\ntwo\r") == "one [2J \ntwo "
