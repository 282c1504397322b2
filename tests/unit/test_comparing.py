"""inferscope.compare: what it takes, what it refuses, and how it reads."""

import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

import inferscope
from inferscope.analysis.gates import hold, parse_gate
from inferscope.errors import NothingToCompareError, SettingError
from inferscope.hardware import calibration_file
from inferscope.report.comparison_view import ComparisonView
from inferscope.sinks.jsonl import JsonlSink
from inferscope.specs import Ceiling
from inferscope.testing import make_record, make_result


def several(number, factor=1.0, **overrides):
    return [make_record(wall_ns=round(factor * (10**9 + 10**6 * i)), **overrides) for i in range(number)]


def written(path, records):
    sink = JsonlSink(path)
    for record in records:
        sink(make_result(record=record))
    sink.close()
    return path


def test_records_files_and_several_of_both_are_the_same_set(tmp_path):
    records = several(6)
    one, other = written(tmp_path / "1.jsonl", records[:2]), written(tmp_path / "2.jsonl", records[2:5])
    found = inferscope.compare(iter(records), [one, str(other), records[5]])
    assert (found.baseline.requests, found.candidate.requests) == (6, 6)
    assert found.change("wall").ratio.value == 1
    assert inferscope.compare(records[0], str(one)).candidate.requests == 2


def test_what_it_refuses(tmp_path):
    with pytest.raises(SettingError, match="baseline: expected records or paths of record files, not int"):
        inferscope.compare([3], several(1))
    for tolerance in (-0.1, 1, float("nan")):
        with pytest.raises(SettingError, match="tolerance="):
            inferscope.compare(several(1), several(1), tolerance=tolerance)
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(NothingToCompareError, match=r"empty\.jsonl: no records in this file, given as the candidate"):
        inferscope.compare(several(1), tmp_path / "empty.jsonl")


def test_each_side_is_judged_by_the_calibration_of_its_own_device(tmp_path, monkeypatch):
    """Looked up by the key in the record, without asking the device; a record of an unknown one has no verdict."""
    monkeypatch.setenv("INFERSCOPE_CACHE_DIR", str(tmp_path))
    asked = []
    read = calibration_file.read
    monkeypatch.setattr(calibration_file, "read", lambda path, key: asked.append(key) or read(path, key))
    device = replace(
        make_result().diagnosis.device,
        key="cpu:one",
        compute_flops_per_s={"float32": Ceiling(value=1e12, source="measured", spread=0.01)},
    )
    content = calibration_file.CalibrationFile(schema=calibration_file.SCHEMA, dtypes=("float32",), device=device)
    calibration_file.write(calibration_file.file_of(tmp_path / "calibration", "cpu:one"), content)
    found = inferscope.compare(several(2, device_key="cpu:one"), several(2, device_key="cpu:two"))
    assert asked == ["cpu:one", "cpu:two"]
    assert [difference.what for difference in found.differences] == ["device"]
    assert found.verdicts


def test_the_text_says_what_changed_and_what_is_not_known():
    base = several(8, versions=(("torch", "2.13.0"),))
    after = several(8, 1.2, versions=(("torch", "2.14.0"),))
    after = [replace(one, model=replace(one.model, dtype="bfloat16\x1b[31m")) for one in after]
    text = str(inferscope.compare(base, after))
    assert "\x1b" not in text
    assert "dtype: float32 → bfloat16" in text
    assert "other versions: torch 2.13.0 → 2.14.0" in text
    assert re.search(r"wall +1\.00 s +1\.20 s +1\.200 +1\.\d+ to 1\.\d+ +slower", text)
    assert re.search(r"syncs_per_token +1 +1 +1\.000 .*same", text)
    assert "launches_per_token" not in text
    assert "not recorded: set INFERSCOPE_OUTPUT_DIGEST=1" in text
    named = [replace(one, phases=(replace(one.phases[0], name="pre\x1b[2Jfill"),)) for one in base]
    assert "\x1b" not in str(inferscope.compare(named, named))
    few = str(inferscope.compare(base[:2], base[:2]))
    assert "tpot: too few: 2 more requests of each length are needed, on both sides" in few
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("width", [40, 120])
def test_a_terminal_of_any_width_shows_the_answers(width):
    found = inferscope.compare(several(8), several(8, 1.2))
    results = hold(found, [parse_gate("wall>1.1"), parse_gate("wall>2")])
    console = Console(width=width, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    console.print(ComparisonView(found, results))
    text = console.export_text()
    assert "slower" in text
    assert "1.200" in text
    assert re.search(r"failed +wall>1\.1", text)
    assert re.search(r"held +wall>2", text)


def test_json_is_the_same_each_time_and_holds_everything():
    one, other = (inferscope.compare(several(5), several(5, 1.1)).to_json() for _ in range(2))
    assert one == other
    report = json.loads(one)
    assert report["candidate"]["spreads"]["wall"]["median"] == pytest.approx(1.1e9, rel=0.01)
    assert {"changes", "verdicts", "predictions", "tokens", "notes", "differences", "gates"} <= report.keys()
