"""Every exhibit of the bottleneck zoo: its planted cause is said first, for the right reason, and nothing false."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from quick_ceilings import quick_ceilings
from rich.console import Console

from inferscope.errors import SettingError
from inferscope.experiments.zoo import catalogue
from inferscope.experiments.zoo.exhibit import Expected, Proof, Truth
from inferscope.experiments.zoo.tour import as_data, run_tour
from inferscope.experiments.zoo.visit import faults_of, look
from inferscope.specs import Ceiling, DeviceSpec

EXHIBITS = {exhibit.name: exhibit for exhibit in catalogue.EXHIBITS}
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "bottleneck-zoo.md"
MARKS = ("<!-- exhibits -->\n", "<!-- end of exhibits -->\n")
ATTEMPTS = 3


@pytest.fixture(scope="module")
def machine():
    return quick_ceilings()


@pytest.mark.parametrize("name", [name for name, exhibit in EXHIBITS.items() if not exhibit.twin])
def test_the_planted_cause_is_said_first_and_nothing_false(machine, name):
    """Again where it was not: who shares the caches slows the machine down without a trace in the record."""
    faults = []
    for _ in range(ATTEMPTS):
        visit = look(EXHIBITS[name], machine)
        if not visit.faults:
            return
        faults.append(visit.faults)
    pytest.fail(f"{name}: {faults}")


@pytest.mark.parametrize("name", [name for name, exhibit in EXHIBITS.items() if exhibit.twin])
def test_the_planted_cause_is_said_first_on_a_twin(name):
    visit = look(EXHIBITS[name], DeviceSpec(name="unused", kind="cpu"))
    assert not visit.faults
    assert visit.first.code == visit.truth.expected[0].code


def test_every_exhibit_has_a_cause_of_its_own():
    assert len(EXHIBITS) == len(catalogue.EXHIBITS) >= 24
    assert len({exhibit.planted for exhibit in EXHIBITS.values()}) == len(EXHIBITS)


def test_a_wrong_answer_is_a_fault():
    """What the zoo's own judgement must not let through: another cause, a thin reason, a false one beside it."""
    result = EXHIBITS["gpu-starved"].run(DeviceSpec(name="unused", kind="cpu"))
    (right,) = EXHIBITS["gpu-starved"].truth(DeviceSpec(name="unused", kind="cpu")).expected
    assert not faults_of(result, Truth(expected=(right,)))
    wrong = {
        "expected first": Truth(expected=(Expected(code="gc-pauses", phase="decode"),)),
        "speaks of": Truth(expected=(replace(right, phase="prefill"),)),
        "is expected": Truth(expected=(replace(right, proofs=(Proof(metric="overhead_share", least=2.0),)),)),
        "not in its evidence": Truth(expected=(replace(right, proofs=(Proof(metric="nothing", least=0.0),)),)),
        "not in its claim": Truth(expected=(replace(right, says=("no such words",)),)),
    }
    for words, truth in wrong.items():
        assert any(words in fault for fault in faults_of(result, truth)), words
    falsely = replace(result.findings[0], code="gc-pauses")
    beside = replace(result, findings=(*result.findings, falsely))
    assert any("gc-pauses is said as well" in fault for fault in faults_of(beside, Truth(expected=(right,))))
    assert not faults_of(beside, Truth(expected=(right,), beside={"gc-pauses": "planted"}))


def test_other_load_counts_only_where_the_record_shows_it():
    result = EXHIBITS["gpu-starved"].run(DeviceSpec(name="unused", kind="cpu"))
    truth = EXHIBITS["gpu-starved"].truth(DeviceSpec(name="unused", kind="cpu"))
    contention = replace(result.findings[0], code="cpu-contention", phase="decode", severity="WARN")
    said = replace(result, findings=(contention, *result.findings))
    for away_share, excused in ((0.0, False), (0.5, True)):
        phases = tuple(
            replace(one, ledger=replace(one.ledger, offcpu_ns=int(away_share * one.wall_ns)))
            for one in result.record.phases
        )
        loaded = replace(said, record=replace(said.record, phases=phases))
        assert (not faults_of(loaded, truth)) == excused


def test_what_is_true_follows_this_machine_s_rates():
    def device(**rates):
        measured = {name: Ceiling(value=value, source="measured", spread=0.01) for name, value in rates.items()}
        return DeviceSpec(
            name="made",
            kind="cpu",
            compute_flops_per_s={"float32": measured["wide"], "bfloat16": measured["narrow"]},
            gemv_bytes_per_s={"float32": measured["gemv"], "bfloat16": measured["gemv"]},
            copy_bytes_per_s=measured["copy"],
        )

    def codes(name, **rates):
        return {one.code for one in EXHIBITS[name].truth(device(**rates)).expected}

    usual = {"wide": 1e11, "narrow": 4e11, "gemv": 9e9, "copy": 1e10}
    assert codes("float32", **usual) == {"faster-dtype-unused"}
    assert codes("float32", **{**usual, "narrow": 9e10}) == {"prefill-compute-bound"}
    assert codes("weight-bound-decode", **usual) == {"decode-weight-bound"}
    assert codes("weight-bound-decode", **{**usual, "gemv": 5e9}) == {"decode-weight-bound", "kernel-inefficient"}
    assert codes("weight-bound-decode", **{**usual, "gemv": 3e9}) == {"kernel-inefficient"}
    slow = {**usual, "narrow": 1e18}  # a peak that no product comes near
    assert codes("big-gemm-prefill", **slow) == {"kernel-inefficient"}
    assert codes("big-gemm-prefill", **{**usual, "wide": 1e6, "narrow": 1e7}) == {"prefill-compute-bound"}


def tour(*only):
    out, status = Console(file=io.StringIO(), width=100), Console(file=io.StringIO())
    visits = run_tour(only, console=out, status=status)
    return out.file.getvalue(), visits


def test_the_tour_says_what_is_planted_what_is_said_and_why():
    text, _ = tour("gpu-starved", "gpu-throttled")
    assert text.index("gpu-starved") < text.index("overhead-bound-passes") < text.index("gpu-throttled-thermal")
    assert "operator_overhead_share" in text
    assert "2 of 2 planted causes were named first" in text
    assert "but " not in text


def test_the_tour_is_there_for_programs():
    _, visits = tour("gpu-item-per-layer")
    (only,) = json.loads(json.dumps([as_data(visit) for visit in visits], allow_nan=False))
    assert (only["exhibit"], only["right"], only["faults"]) == ("gpu-item-per-layer", True, [])
    assert only["first"]["code"] == only["expected"][0] == "sync-per-token"
    assert {row["metric"]: row["value"] for row in only["first"]["evidence"]}["syncs_per_pass"] == 24


def test_an_exhibit_that_is_not_there_is_refused_by_name():
    with pytest.raises(SettingError, match="--only elephant: expected one of big-gemm-prefill"):
        run_tour(["elephant"], console=None, status=Console())


def table():
    device = DeviceSpec(name="unused", kind="cpu")
    rows = ["| exhibit | planted | what must be said first |", "|---|---|---|"]
    for exhibit in catalogue.EXHIBITS:
        said = ON_THIS_MACHINE.get(exhibit.name) or " or ".join(
            f"`{one.code}`" for one in exhibit.truth(device).expected
        )
        rows.append(f"| `{exhibit.name}` | {exhibit.planted} | {said} |")
    return "\n".join(rows) + "\n"


ON_THIS_MACHINE = {
    "big-gemm-prefill": "`prefill-compute-bound`, or `kernel-inefficient` where this very product stays far below the "
    "peak",
    "float32": "`faster-dtype-unused` where bfloat16 was measured faster, else `prefill-compute-bound`",
    "weight-bound-decode": "`decode-weight-bound`, or `kernel-inefficient` where matrix times vector stays far below "
    "the memory roof",
    "kv-bound-decode": "`decode-kv-bound`, or `kernel-inefficient` where attention stays far below the memory roof",
}


def written(text):
    before, rest = text.split(MARKS[0])
    return f"{before}{MARKS[0]}{table()}{MARKS[1]}{rest.split(MARKS[1])[1]}"


def test_the_page_lists_the_exhibits():
    text = PAGE.read_text(encoding="utf-8")
    assert text == written(text), "run python tests/zoo/test_zoo.py"
    named = set(re.findall(r"--only ([a-z0-9-]+)", text))
    assert named <= set(EXHIBITS)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
