"""`inferscope sweep` on a tiny model with random weights: interrupted, resumed, out of memory, refused."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from command_server import documented_fields

from inferscope import read_records
from inferscope.analysis.sweep_points import Job, Point, Setting, labels_of, point_of
from inferscope.cli.main import main
from inferscope.errors import RecordFormatError
from inferscope.experiments.sweep import (
    LocalExecutor,
    SweepOptions,
    known_records,
    resume_command,
    run_sweep,
    sweep_labels,
)
from inferscope.experiments.sweep_bench import Bench, load_model
from inferscope.testing import make_record

PROGRAM = "import sys; from inferscope.cli.main import main; sys.exit(main())"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 100,
}
SMALL = ("--batch", "1,2,4", "--input-tokens", "4,12", "--output-tokens", "4", "--rounds", "2", "--adaptive", "0")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "150"},
    )


def jobs_in(path):
    return [point_of(record) for record in read_records(path)]


@pytest.fixture(scope="module")
def interrupted(config, tmp_path_factory):
    """A sweep that Ctrl-C ends in the middle: its file, and what it said."""
    out = tmp_path_factory.mktemp("sweep") / "runs" / "sweep.jsonl"
    many = [*SMALL[:-3], "500", *SMALL[-2:]]
    process = started("sweep", config, *many, "--out", out)
    deadline = time.monotonic() + 240
    while (not out.exists() or out.read_bytes().count(b"\n") < 3) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    return out, process.returncode, stdout, stderr


def test_ctrl_c_leaves_complete_lines_and_says_how_to_go_on(interrupted, config):
    out, code, stdout, stderr = interrupted
    assert code == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("interrupted: ")
    assert out.read_bytes().endswith(b"\n")
    assert len(read_records(out)) >= 3
    (line,) = [line for line in stderr.splitlines() if " to go on: " in line]
    command = shlex.split(line.partition(" to go on: ")[2])
    assert command[:3] == ["inferscope", "sweep", str(config)]
    assert command[-3:] == ["--out", str(out), "--resume"]
    assert ("500" in command) == ("--rounds" in command) is True


def test_a_sweep_goes_on_where_it_was_and_answers(interrupted, config, capsys):
    out, *_ = interrupted
    kept = out.read_bytes()
    asked = ["sweep", str(config), *SMALL, "--objective", "ttft<=100s,tpot<=100s", "--out", str(out)]
    assert main([*asked, "--resume", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == documented_fields("inferscope.sweep")
    assert out.read_bytes().startswith(kept)  # what was there stands
    jobs = jobs_in(out)
    assert len(set(jobs)) == len(jobs)
    expected = {(length, batch, number) for length in (4, 12) for batch in (1, 2, 4) for number in (0, 1)}
    assert {(job.point.input_tokens, job.point.batch_size, job.round_number) for job in jobs} >= expected
    (series,) = found["series"]
    assert [(one["point"]["input_tokens"], one["point"]["batch_size"]) for one in series["points"]] == [
        (length, batch) for length in (4, 12) for batch in (1, 2, 4)
    ]
    assert {one["status"] for one in series["points"]} == {"measured"}
    assert all(one["ttft_ns"]["value"] > 0 and one["tpot_ns"]["value"] > 0 for one in series["points"])
    assert all(one["needed_bytes"] > 0 for one in series["points"])
    assert series["goodput"][0]["batch_size"] in {1, 2, 4}
    for record in read_records(out):
        job = point_of(record)
        assert (record.batch_size, record.output_len) == (job.point.batch_size, job.point.output_tokens)
        assert record.input_tokens == job.point.batch_size * job.point.input_tokens
        assert {phase.name for phase in record.phases} == {"prefill", "decode"}
    # Once more: nothing is measured, nothing is loaded, and the answer is the same to the last digit.
    before = out.read_bytes()
    assert main([*asked, "--resume", "--json"]) == 0
    again = capsys.readouterr()
    assert json.loads(again.out) == found
    assert "measuring" not in again.err
    assert out.read_bytes() == before
    assert main([*asked, "--resume"]) == 0
    shown = capsys.readouterr().out
    for words in ("tokens in", "weight knee", "cache knee", "ttft<=100s,tpot<=100s", f"records: {out}"):
        assert words in shown


def test_settings_are_measured_apart_and_what_would_not_fit_is_not_run(config, tmp_path, capsys):
    out = tmp_path / "s.jsonl"
    asked = ["--batch", "1,64", "--input-tokens", "6", "--output-tokens", "3", "--rounds", "1", "--adaptive", "0"]
    axes = ["--dtype", "float32,bfloat16", "--attention", "eager,sdpa", "--cache", "dynamic,static"]
    assert main(["sweep", str(config), *asked, *axes, "--memory-limit", "100kB", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["series"]) == 8
    for series in found["series"]:
        one, many = series["points"]
        assert (one["status"], many["status"], many["note"]) == ("measured", "out of memory", "predicted")
        assert one["needed_bytes"] < 100_000 < many["needed_bytes"]
        (edge,) = series["memory"]
        assert (edge["largest_run"], edge["smallest_out"], edge["source"]) == (1, 64, "predicted")
        assert 1 < edge["counted"] <= 64
    records = read_records(out)
    assert len(records) == 8
    for record in records:
        setting = point_of(record).point.setting
        assert (record.model.dtype, record.model.attention) == (setting.dtype, setting.attention)


@pytest.mark.parametrize(
    ("arguments", "slug", "words"),
    [
        (("--batch", "1,x"), "bad-setting", "--batch 1,x"),
        (("--batch", "0"), "bad-setting", "--batch 0"),
        (("--input-tokens", ""), "bad-setting", "--input-tokens"),
        (("--output-tokens", "0"), "bad-setting", "--output-tokens 0"),
        (("--rounds", "0"), "bad-setting", "--rounds 0"),
        (("--adaptive", "-1"), "bad-setting", "--adaptive -1"),
        (("--dtype", "int3"), "bad-setting", "--dtype int3"),
        (("--cache", "none"), "bad-setting", "--cache none"),
        (("--attention", "nonsense"), "bad-setting", "--attention nonsense"),
        (("--objective", "fast"), "bad-setting", "--objective fast"),
        (("--memory-limit", "much"), "bad-setting", "--memory-limit much"),
        (("--device", "toaster"), "unknown-device", "toaster"),
        (("--out", "{folder}"), "bad-setting", "a folder"),
        (("--out", "{folder}/there.jsonl"), "bad-setting", "--resume"),
        (("--out", "{folder}/there.jsonl", "--resume"), "record-format", "line 1"),
        (("--out", "{folder}/other.jsonl", "--resume"), "record-format", "no sweep made"),
        (("--out", "{folder}/foreign.jsonl", "--resume"), "bad-setting", "was measured with ./other"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(config, tmp_path, capsys, arguments, slug, words):
    (tmp_path / "there.jsonl").write_text("no record\n", encoding="utf-8")
    write(tmp_path / "other.jsonl", make_record())
    labels = (*labels_of(Job(point=SweepOptions().points()[0], round_number=0)), ("sweep.model", "./other"))
    write(tmp_path / "foreign.jsonl", make_record(labels=labels))
    given = [part.format(folder=tmp_path) for part in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "new.jsonl")]
    code = main(["sweep", str(config), *given, *out])
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if not line.endswith(" ...")]
    assert (code, told.out, len(lines)) == (2, "", 1), told.err
    assert lines[0].startswith(f"error[{slug}]: ")
    assert words in lines[0]


def test_a_model_that_is_not_there_or_an_out_that_cannot_be_written_is_one_line(config, tmp_path, capsys):
    assert main(["sweep", "./nowhere", *SMALL, "--out", str(tmp_path / "s.jsonl")]) == 2
    assert "error[model-not-found]" in capsys.readouterr().err
    broken = tmp_path / "config.json"
    broken.write_text('{"model_type": "llama", "hidden_size": -3}', encoding="utf-8")
    assert main(["sweep", str(broken), *SMALL, "--out", str(tmp_path / "s.jsonl")]) == 2
    (tmp_path / "file").write_text("", encoding="utf-8")
    capsys.readouterr()
    assert main(["sweep", str(config), *SMALL, "--out", str(tmp_path / "file" / "s.jsonl")]) == 3
    assert "error[cache-unwritable]" in capsys.readouterr().err


def test_what_is_no_configuration_is_one_line_and_leaves_no_record(tmp_path, capsys):
    contents = {
        "cut.json": b'{"model_type": "lla',
        "binary.json": bytes(range(256)),
        "list.json": b"[1]",
        "bare.json": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "long.json").open("wb") as file:  # sparse: 200 MB that take no room
        file.truncate(200 * 2**20)
    (tmp_path / "folder").mkdir()
    out = tmp_path / "s.jsonl"
    for name in (*contents, "long.json", "folder", "missing.json"):
        assert main(["sweep", str(tmp_path / name), *SMALL, "--out", str(out)]) == 2, name
        told = capsys.readouterr()
        lines = [line for line in told.err.splitlines() if not line.endswith(" ...")]
        assert (told.out, len(lines)) == ("", 1), told
        assert lines[0].startswith("error[model-not-found]: "), told
        assert name in lines[0]
        assert not out.exists() or out.stat().st_size == 0


def write(path, *records):
    from inferscope.sinks.jsonl import JsonlSink  # noqa: PLC0415

    sink = JsonlSink(path)
    assert all(sink.append(record) for record in records)
    sink.close()


def test_a_request_that_runs_out_of_memory_is_a_result_and_larger_ones_are_not_tried(config, tmp_path):
    asked = []

    def load(dtype):
        model = load_model(str(config), dtype, device="cpu", seed=0)
        model.register_forward_pre_hook(refuse, with_kwargs=True)
        return model

    def refuse(_module, _arguments, given):
        batch = given["input_ids"].shape[0]
        asked.append(batch)
        if batch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if batch == 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")
        if batch == 1 and given["input_ids"].shape[1] == 9:
            raise ValueError("an accident")

    options = SweepOptions(
        model=str(config), batch=(1, 2, 4, 8), input_tokens=(5, 9), output_tokens=2, rounds=2, adaptive=0
    )
    bench = Bench(load, labels=sweep_labels(options, None))
    out = tmp_path / "s.jsonl"
    sweep = run_sweep(options, out, LocalExecutor(bench), records=[], limit_bytes=None, tell=lambda *_: None)
    (series,) = sweep.series
    status = {(one.point.input_tokens, one.point.batch_size): (one.status, one.note) for one in series.points}
    assert status[5, 1] == ("measured", "")
    assert status[5, 2][0] == status[5, 4][0] == "out of memory"
    assert status[9, 1] == ("failed", "ValueError: an accident")
    records = read_records(out)
    assert {record.status for record in records} == {"ok", "aborted"}
    assert asked.count(2) <= 2  # once for each prompt length; never again after it was refused
    known = known_records(options, out, resume=True)
    again = run_sweep(options, out, LocalExecutor(bench), records=known, limit_bytes=None, tell=lambda *_: None)
    assert [(one.point, one.status) for one in again.series[0].points if one.point.batch_size != 8] == [
        (one.point, one.status) for one in series.points if one.point.batch_size != 8
    ]


class Replay:
    """Hands out the same record for the same job, whenever it is asked: what a machine without noise in time would do.

    Attributes:
        left: Jobs before Ctrl-C.
    """

    def __init__(self, options, left=10**9):
        self.options = options
        self.left = left

    def describe(self, _setting):
        return make_record().model

    def measure(self, jobs):
        for job in jobs:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield self.record(job)

    def record(self, job):
        point, chance = job.point, random.Random(repr(job))
        noise = 1 + 0.01 * chance.random()
        tpot_ns = noise * (1e7 + max(3e7, 5e6 * point.batch_size) + 2_000 * point.batch_size * point.input_tokens)
        labels = (*labels_of(job), *sweep_labels(self.options, None))
        made = make_record(labels=labels, request_id=f"{chance.getrandbits(64):016x}")
        return replace(made, tpot_ns=tpot_ns, ttft_ns=int(noise * 1e6 * point.batch_size * point.input_tokens))


@pytest.mark.parametrize("after", [0, 1, 40, 75, 84])
def test_interrupted_anywhere_and_resumed_it_says_what_an_uninterrupted_sweep_says(tmp_path, after):
    options = SweepOptions(
        model="m", batch=(1, 2, 4, 16, 32), input_tokens=(16, 64, 256), objective="tpot<=120ms", seed=3
    )

    def swept(out, executor):
        known = known_records(options, out, resume=True)
        return run_sweep(options, out, executor, records=known, limit_bytes=None, tell=lambda *_: None)

    whole = swept(tmp_path / "whole.jsonl", Replay(options))
    batches = {one.point.batch_size for one in whole.series[0].points}
    assert batches > {1, 2, 4, 16, 32}  # points in between were added, and depend on what was measured
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "parts.jsonl", Replay(options, left=after))
    assert len(read_records(tmp_path / "parts.jsonl")) == after
    assert swept(tmp_path / "parts.jsonl", Replay(options)) == whole
    assert sorted(map(str, jobs_in(tmp_path / "parts.jsonl"))) == sorted(map(str, jobs_in(tmp_path / "whole.jsonl")))
    assert whole.series[0].goodput[0].batch_size is not None


def test_a_record_that_a_full_disk_cut_off_is_measured_again(tmp_path):
    options = SweepOptions(model="m", batch=(1, 2, 4), input_tokens=(16, 64), adaptive=0, seed=3)
    out = tmp_path / "s.jsonl"

    def swept():
        known = known_records(options, out, resume=True)
        return run_sweep(options, out, Replay(options), records=known, limit_bytes=None, tell=lambda *_: None)

    whole, content = swept(), out.read_bytes()
    lines = content.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:-1]) + lines[-1][:100])
    assert swept() == whole
    assert out.read_bytes().splitlines(keepends=True)[:-1] == lines[:-1]
    assert len(read_records(out)) == len(lines)
    # What may be something else is left as it is: a fault in the middle, a file that is no sweep's, one line alone.
    for other in (b"".join([lines[0], b"{\n", lines[1][:100]]), b"once upon a time", lines[0][:100]):
        out.write_bytes(other)
        with pytest.raises(RecordFormatError):
            swept()
        assert out.read_bytes() == other


def test_the_command_that_goes_on_asks_for_the_same(tmp_path):
    options = SweepOptions(
        model="my model", batch=(1, 3), dtype=("bfloat16",), objective="ttft<=1s", memory_limit_bytes=10**9
    )
    said = shlex.split(resume_command(options, tmp_path / "a b.jsonl", ray=True))
    assert said == [
        *("inferscope", "sweep", "my model", "--batch", "1,3", "--dtype", "bfloat16", "--objective", "ttft<=1s"),
        *("--memory-limit", "1000000000", "--out", str(tmp_path / "a b.jsonl"), "--ray", "--resume"),
    ]


def test_one_model_at_a_time_is_kept_where_several_would_not_leave_room(config):
    loaded = []

    def load(dtype):
        loaded.append(dtype)
        return load_model(str(config), dtype, device="cpu", seed=0)

    for limit_bytes, times in ((1_000, 4), (None, 2)):
        loaded.clear()
        bench = Bench(load, memory_limit_bytes=limit_bytes)
        for dtype in ("float32", "bfloat16", "float32", "bfloat16"):
            setting = Setting(dtype=dtype, attention="sdpa", cache="dynamic")
            point = Point(setting=setting, input_tokens=3, batch_size=1, output_tokens=2)
            assert bench.measure(Job(point=point, round_number=0)).status == "ok"
        assert len(loaded) == times
