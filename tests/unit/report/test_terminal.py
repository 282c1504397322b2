"""What a person sees. Run this file to write the snapshots anew; read their difference before keeping it."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from inferscope.report.plain import to_text
from inferscope.report.terminal import ResultView, render, render_device
from inferscope.report.units import UNKNOWN
from inferscope.specs import Ceiling, DeviceSpec
from inferscope.testing import make_record, make_result

SNAPSHOTS = Path(__file__).parent / "snapshots"
DEVICE = DeviceSpec(
    name="AMD EPYC",
    kind="cpu",
    compute_flops_per_s={
        "bfloat16": Ceiling(value=8.5e11, source="measured", spread=0.012, note="2048 x 2048 x 2048"),
        "float32": Ceiling(value=1.97e11, source="measured", spread=0.004, note="256 x 256 x 256"),
    },
    gemv_bytes_per_s={"float32": Ceiling(value=2.39e10, source="measured", spread=0.032)},
    copy_bytes_per_s=Ceiling(value=3.38e10, source="datasheet", note="DDR5-4800, 1 channel"),
    dispatch_ns=Ceiling(value=902.0, source="measured", spread=0.004),
    cache_bytes=33_554_432,
    memory_bytes=25_300_000_000,
    threads=2,
    torch_version="2.13.0",
    rejected=("copy in cache: spread 9.1 % is over 5 %",),
)
DRAWN = {
    "plain-80": lambda: to_text(make_result(), width=80) + "\n",
    "plain-60": lambda: to_text(make_result(), width=60) + "\n",
    "rich-100": lambda: render(make_result(), width=100),
    "rich-60": lambda: render(make_result(), width=60),
    "device-100": lambda: render_device(DEVICE, width=100),
    "device-60": lambda: render_device(DEVICE, width=60),
}


@pytest.mark.parametrize("name", DRAWN)
def test_looks_as_it_did(name):
    assert DRAWN[name]() == (SNAPSHOTS / f"{name}.txt").read_text(encoding="utf-8")


def _unknown_result():
    record = make_record()
    phases = tuple(
        replace(
            phase,
            tokens=None,
            device=None,
            ledger=replace(
                phase.ledger, select_ns=phase.ledger.select_ns + phase.ledger.wait_ns, wait_ns=None, offcpu_ns=None
            ),
        )
        for phase in record.phases
    )
    record = make_record(
        phases=phases, ttft_ns=None, itl_ns=None, input_tokens=None, output_tokens=None, batch_size=None
    )
    result = make_result(record=record, findings=())
    verdicts = tuple(
        replace(
            verdict,
            bound="unknown",
            confidence="low",
            shares={},
            cost=None,
            mfu=None,
            mbu=None,
            achieved_flops_per_s=None,
            achieved_bytes_per_s=None,
            roof_share=None,
            reasons=("no ceilings",),
        )
        for verdict in result.diagnosis.phases
    )
    return replace(result, diagnosis=replace(result.diagnosis, device=None, phases=verdicts))


@pytest.mark.parametrize("show", [to_text, lambda result: render(result, width=80)])
def test_what_is_unknown_is_a_dash(show):
    lines = show(_unknown_result()).splitlines()
    rows = {re.split(r" {2,}", line)[0]: re.split(r" {2,}", line)[1:] for line in lines}
    for label in ("tokens", "off CPU", "FLOPs", "bytes", "FLOP per byte", "achieved FLOP/s"):
        assert rows[label][:2] == [UNKNOWN, UNKNOWN], label
    for label in ("share of roof", "MFU", "MBU"):
        assert rows[label] == [UNKNOWN, UNKNOWN, UNKNOWN], label
    assert rows["TTFT"][:2] == [UNKNOWN, UNKNOWN]
    assert rows["TPOT"][0] == rows["ITL p99"][0] == rows["rate"][0] == UNKNOWN
    assert any(line.split()[:5] == ["▒", "decode", "wait", UNKNOWN, UNKNOWN] for line in lines)
    assert any(line.startswith(f"batch {UNKNOWN} · {UNKNOWN} tokens in · {UNKNOWN} out") for line in lines)
    text = "\n".join(lines)
    assert "no ceilings" in text
    assert "none: nothing here stands out" in text
    assert "None" not in text
    assert "nan" not in text


HOSTILE = "[bold red]evil[/] :bomb: [link=file:///etc/passwd]x[/link]\x1b[31m\x07\r\nnext"


@pytest.mark.parametrize("color", [False, True])
def test_a_hostile_name_is_shown_and_steers_nothing(color):
    record = make_record()
    record = replace(record, model=replace(record.model, name=HOSTILE), notes=(HOSTILE,))
    text = render(make_result(record=record), width=200, color=color)
    assert "[bold red]evil[/] :bomb: [link=file:///etc/passwd]x[/link]" in text
    assert "\x07" not in text
    assert "\x1b[31m" not in text.split("Phases")[0]
    assert "\x1b[" in text or not color


def test_a_hostile_name_is_plain_in_plain_text():
    record = make_record()
    text = to_text(make_result(record=replace(record, model=replace(record.model, name=HOSTILE))))
    assert "\x1b" not in text
    assert "\x07" not in text


@pytest.mark.parametrize("width", [60, 72, 80, 100, 140])
@pytest.mark.parametrize("phases", [1, 2, 6])
def test_no_line_is_wider_than_the_terminal(width, phases):
    two = make_record().phases
    names = ("encode", "prefill", "decode", "verify", "draft", "mixed")
    made = tuple(replace(two[i % 2], name=name) for i, name in enumerate(names[:phases]))
    result = make_result(record=make_record(phases=made))
    for text in (to_text(result, width=width), render(result, width=width)):
        assert max(len(line) for line in text.splitlines()) <= width
        for name in names[:phases]:
            assert f"{name} issue" in text


def test_a_request_without_phases_can_be_shown():
    result = make_result(record=make_record(phases=(), status="aborted", error_type="KeyboardInterrupt", wall_ns=0))
    for text in (to_text(result), render(result, width=100)):
        assert "aborted by KeyboardInterrupt" in text


def test_piped_output_has_no_colour(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    Console(width=80).print(ResultView(make_result()))
    assert "\x1b" not in capsys.readouterr().out


def test_no_color_is_honoured(monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    Console(width=80, force_terminal=True).print(ResultView(make_result()))
    out = capsys.readouterr().out
    assert not any(f"\x1b[{colour}m" in out for colour in range(30, 38))


def test_colour_marks_severity_and_bound():
    assert render(make_result(), width=80, color=True) != render(make_result(), width=80)


def test_plain_text_needs_no_rich():
    program = (
        "import sys\nsys.modules['rich'] = None\n"
        "from inferscope.report.plain import to_text\nfrom inferscope.testing import make_result\n"
        "print(to_text(make_result()))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", program], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert "decode" in done.stdout


def test_a_roof_from_a_datasheet_is_told_from_a_measured_one():
    result = make_result()
    result = replace(result, diagnosis=replace(result.diagnosis, device=DEVICE))
    narrow = {line.split("  ")[0]: line.split()[-1] for line in to_text(result, width=60).splitlines() if line}
    wide = {line.split("  ")[0]: line.split()[-1] for line in to_text(result, width=100).splitlines() if line}
    assert wide["share of roof"] == wide["MFU"] == "analytic/datasheet+measured"
    assert narrow["share of roof"] == narrow["MFU"] == "a/d+m"
    assert narrow["time"] == "m"


def test_a_device_without_ceilings_says_what_to_do():
    text = render_device(DeviceSpec(name="[red]X", kind="cpu"), width=80)
    assert "[red]X" in text
    assert "inferscope calibrate" in text


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        (SNAPSHOTS / f"{name}.txt").write_text(draw(), encoding="utf-8")
