from __future__ import annotations

import dataclasses
import json
import math
import threading
import typing
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inferscope import records as record_types
from inferscope import specs
from inferscope.errors import CacheUnwritableError, RecordFormatError
from inferscope.records import PassSample, PhaseRecord, QuantileSketch, RequestOptions
from inferscope.sinks import jsonl
from inferscope.sinks.jsonl import JsonlSink, iter_records, read_records
from inferscope.testing import make_record, make_result


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.jsonl"


@pytest.fixture
def write(path):
    """Writes records and returns the file's lines as JSON values."""

    def written(*records):
        sink = JsonlSink(path)
        for record in records:
            sink(make_result(record=record))
        sink.close()
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    return written


def full_record():
    """A record in which every optional part is there."""
    terms = specs.OperatorTerms(
        group="linear",
        regime="decode",
        calls=(1,) * 9,
        launches=(1,) * 9,
        flops=(-3,) * 9,
        flops_full=(2,) * 9,
        weight_bytes=(5,) * 9,
        activation_bytes=(0,) * 9,
        executed_bytes=(7,) * 9,
    )
    cost = specs.CostTerms(
        operators=(terms,),
        kv_bytes_per_token=46_080,
        logits_bytes=196_608,
        supports_logits_to_keep=True,
        uncounted=("aten.sort",),
    )
    record = make_record(options=RequestOptions(max_new_tokens=16, temperature=0.7, top_p=1.0, streaming=True))
    sample = PassSample(
        name="prefill", start_ns=5, host_ns=7, q_len=32, past_len=0, batch_size=1, device=record.phases[0].device
    )
    return replace(record, model=replace(record.model, cost=cost), pass_samples=(sample,), notes=("naïve ✓",))


def edited(path, line, **changes):
    """The file's only line with some fields changed; a double underscore goes one level down."""
    for name, value in changes.items():
        holder, *rest = name.split("__")
        target = line
        while rest:
            target, holder = target[int(holder) if holder.isdigit() else holder], rest.pop(0)
        target[int(holder) if isinstance(target, list) else holder] = value
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")


def test_what_is_written_is_read_back_exactly(path, write):
    records = [make_record(), full_record(), make_record(phases=(), status="aborted", error_type="ValueError")]
    write(*records)
    assert read_records(path) == records
    assert next(iter_records(str(path))) == records[0]


@given(
    passes_ns=st.lists(st.integers(0, 2**53), max_size=20),
    tpot_ns=st.none() | st.floats(0, 1e18),
    setup_ns=st.integers(0, 2**53),
    text=st.text(st.characters(codec="utf-8")),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_measured_record_survives_the_round_trip(path, passes_ns, tpot_ns, setup_ns, text):
    record = make_record()
    ledger = replace(record.phases[0].ledger, issue_ns=sum(passes_ns))
    phase: PhaseRecord = replace(
        record.phases[0],
        pass_ns=QuantileSketch.of(passes_ns),
        ledger=ledger,
        wall_ns=ledger.total_ns,
        end_ns=record.phases[0].start_ns + ledger.total_ns,
    )
    whole = replace(make_record(phases=(phase,)).ledger, setup_ns=setup_ns)
    record = make_record(phases=(phase,), ledger=whole, tpot_ns=tpot_ns, notes=(text,))
    path.unlink(missing_ok=True)
    sink = JsonlSink(path)
    sink(make_result(record=record))
    sink.close()
    assert read_records(path) == [record]


def test_each_line_stands_alone_and_carries_its_schema(write):
    lines = write(make_record(), make_record())
    assert len(lines) == 2
    assert all(line["schema"] == 1 for line in lines)


def test_an_existing_file_is_continued_even_after_a_torn_line(path, write):
    write(make_record())
    with path.open("ab") as file:
        file.write(b'{"schema": 1, "wall')
    write_again = JsonlSink(path)
    write_again(make_result())
    write_again.close()
    records = iter_records(path)
    assert next(records) == make_record()
    with pytest.raises(RecordFormatError, match="line 2: not JSON"):
        next(records)
    assert len(path.read_bytes().splitlines()) == 3


def test_threads_share_a_sink_without_mixing_lines(path):
    sink, result = JsonlSink(path), make_result()
    threads = [threading.Thread(target=lambda: [sink(result) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()
    assert read_records(path) == [result.record] * 400
    assert (sink.written, sink.dropped) == (400, 0)


def test_a_line_is_on_disk_when_the_sink_returns(path):
    sink = JsonlSink(path)
    sink(make_result())
    assert len(read_records(path)) == 1
    sink.close()


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path):
    for impossible in (tmp_path, tmp_path / "missing" / "records.jsonl", "nul\0byte"):
        with pytest.raises(CacheUnwritableError, match="cannot be written"):
            JsonlSink(impossible)


def test_a_full_disk_drops_and_counts(notices_reset, capsys):
    sink = JsonlSink("/dev/full")
    for _ in range(3):
        sink(make_result())
    assert (sink.written, sink.dropped) == (0, 3)
    assert capsys.readouterr().err.count("record-not-written") == 1
    sink.close()


def test_a_closed_sink_drops_and_counts(path, notices_reset):
    sink = JsonlSink(path)
    sink.close()
    sink(make_result())
    assert (sink.written, sink.dropped) == (0, 1)


def float_fields(kind, place=()):
    """Places of all floats in a type of the record."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        for part in (hints[field.name], *typing.get_args(hints[field.name])):
            if part is float:
                yield (*place, field.name)
            elif dataclasses.is_dataclass(part):
                yield from float_fields(part, (*place, field.name))


@pytest.mark.parametrize("where", sorted(set(float_fields(record_types.GenerationRecord))))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_that_is_not_finite_is_ever_written(path, notices_reset, where, value):
    record = make_record(own_overhead=record_types.OwnOverhead(budget_share=0.01, observed_share=1.0))
    holder = record
    for name in where[:-1]:
        holder = getattr(holder, name)
    changed = replace(holder, **{where[-1]: value})
    record = changed if len(where) == 1 else replace(record, **{where[0]: changed})
    sink = JsonlSink(path)
    sink(make_result(record=record))
    sink.close()
    assert (sink.written, sink.dropped, path.read_bytes()) == (0, 1, b"")


def test_every_float_of_a_record_is_among_those_checked():
    assert set(float_fields(record_types.GenerationRecord)) == {
        ("tpot_ns",),
        ("options", "temperature"),
        ("options", "top_p"),
        *(("own_overhead", name) for name in ("budget_share", "observed_share", "self_share")),
        *(("own_overhead", name) for name in ("per_token_ns", "low_ns", "high_ns")),
    }


def test_a_difference_of_means_may_be_negative(path, write):
    overhead = record_types.OwnOverhead(
        budget_share=0.01,
        observed_share=0.5,
        per_token_ns=-120.5,
        low_ns=-900.0,
        high_ns=659.0,
        observed=40,
        bare=38,
        provenance="randomised",
    )
    record = make_record(own_overhead=overhead)
    write(record)
    assert read_records(path) == [record]


def test_unknown_fields_and_empty_lines_are_ignored(path, write):
    (line,) = write(make_record())
    line["from_the_future"] = {"deep": [1, 2]}
    path.write_text(f"\n{json.dumps(line)}\n   \n", encoding="utf-8")
    assert read_records(path) == [make_record()]


def test_an_empty_file_holds_no_records(path):
    path.touch()
    assert read_records(path) == []


def test_a_last_line_without_its_newline_is_still_a_line(path, write):
    write(make_record())
    path.write_bytes(path.read_bytes().rstrip())
    assert read_records(path) == [make_record()]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hello\n", "line 1: not JSON"),
        (b'{"schema": 1, "wall_ns"', "line 1: the last line is cut off"),
        (b"\x7fELF\0\0\0\n", "line 1: binary data"),
        (b"[1, 2]\n", "line 1: not a record of inferscope"),
        (b"{}\n", "line 1: not a record of inferscope"),
        (b'{"schema": "1"}\n', "line 1: not a record of inferscope"),
        (b'{"schema": 2}\n', "line 1: schema 2, this version reads schema 1: upgrade inferscope"),
        (b'{"schema": 0}\n', "line 1: schema 0"),
        (b'{"schema": 1}\n', "line 1: not a record"),
        (b'{"schema": 1, "a": ' + b"[" * 100_000 + b"\n", "line 1: not"),
        (b'{"schema": 1, "wall_ns": NaN}\n', "line 1: not JSON"),
        (b'{"schema": 1, "\xff": 0}\n', "line 1: not"),
    ],
)
def test_a_broken_line_is_named(path, content, said):
    path.write_bytes(content)
    with pytest.raises(RecordFormatError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}, {said}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wall_ns": "7"}, "not a record: Expected `int`, got `str` - at `$.wall_ns`"),
        ({"wall_ns": True}, "not a record"),
        ({"status": "fine"}, "not a record"),
        ({"wall_ns": 7}, "the ledger adds up to 722896000 ns, the wall is 7 ns"),
        ({"ttft_ns": -1}, "record.ttft_ns is -1: it cannot be negative"),
        ({"drafted_tokens": 2, "accepted_tokens": 3}, "3 tokens were accepted and 2 drafted"),
        ({"phases__1__worst__0__excess_ns": -2}, "record.phases[1].worst[0].excess_ns is -2"),
        ({"wall_ns": 10**30}, "out of range"),
        ({"tpot_ns": 1e300}, "out of range"),
        ({"phases__0__wall_ns": 3}, "the ledger names other phases, or other times"),
        ({"phases__0__name": "decode"}, "the ledger names other phases, or other times"),
        ({"phases__0__ledger__select_ns": 0}, "the ledger of prefill adds up to"),
        ({"phases__0__end_ns": 0}, "prefill ends before it starts"),
        ({"phases__0__device__low_ns": 10**12}, "the device time of prefill"),
        ({"phases__0__pass_ns__buckets": [[10**6, 1]]}, "buckets out of order or out of range"),
        ({"phases__0__pass_ns__buckets": [[2, 1], [1, 1]]}, "buckets out of order or out of range"),
        ({"phases__0__pass_ns__count": 5}, "another count than its buckets"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(path, write, changes, said):
    (line,) = write(make_record())
    edited(path, line, **changes)
    with pytest.raises(RecordFormatError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}, line 1: ")
    assert said in str(caught.value)


def test_what_may_be_negative_is_read(path, write):
    record = full_record()
    shifted = replace(record.ledger, residual_ns=-9, tail_ns=record.ledger.tail_ns + record.ledger.residual_ns + 9)
    record = replace(record, ledger=shifted, options=RequestOptions(top_k=-1))
    write(record)
    assert read_records(path) == [record]


def test_the_line_number_counts_every_line(path, write):
    write(make_record(), make_record())
    path.write_bytes(b"\n" + path.read_bytes() + b"oops\n")
    records = iter_records(path)
    assert [next(records), next(records)] == [make_record()] * 2
    with pytest.raises(RecordFormatError, match="line 4: not JSON"):
        next(records)


def test_a_line_without_end_is_not_loaded(path, monkeypatch):
    monkeypatch.setattr(jsonl, "LINE_LIMIT_BYTES", 1 << 20)
    with path.open("wb") as file:
        file.truncate(1 << 34)  # sparse: reading it whole would take 16 GiB
    with pytest.raises(RecordFormatError, match="line 1: longer than 1 MiB"):
        read_records(path)


@pytest.mark.parametrize("odd", ["missing.jsonl", ".", "nul\0byte", "x" * 5000])
def test_a_path_that_is_no_file_is_named(tmp_path, odd):
    with pytest.raises(RecordFormatError):
        read_records(f"{tmp_path}/{odd}")


def test_a_device_is_not_read_for_ever():
    with pytest.raises(RecordFormatError, match="/dev/zero: not a file"):
        read_records("/dev/zero")


def outcome(path):
    """The records, or what was said against them; any other error is the test's."""
    try:
        return read_records(path), ""
    except RecordFormatError as error:
        return [], str(error)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(content=st.binary(max_size=200))
@example(content=b"\xef\xbb\xbf{}")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_raise_nothing_else(path, content):
    path.write_bytes(content)
    records, refusal = outcome(path)
    assert records == []
    assert refusal == "" or refusal.startswith(f"{path}, line ")


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_a_record_with_any_value_changed_is_refused_or_usable(path, data):
    path.unlink(missing_ok=True)
    sink = JsonlSink(path)
    sink(make_result(record=full_record()))
    sink.close()
    line = json.loads(path.read_text(encoding="utf-8"))
    target = line
    while True:
        key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
        if not isinstance(target[key], (dict, list)) or not target[key] or data.draw(st.booleans()):
            break
        target = target[key]
    target[key] = data.draw(_JSON)
    path.write_text(json.dumps(line), encoding="utf-8")
    records, refusal = outcome(path)
    assert len(records) == 1 or refusal.startswith(f"{path}, line 1: ")
    for record in records:
        assert record.ledger.total_ns == record.wall_ns
        for phase in record.phases:
            assert phase.pass_ns.p99 is None or phase.pass_ns.p99 >= 0


def test_how_much_of_a_file_has_been_read_is_told(path, write):
    write(*[make_record()] * 130)
    shares = []
    assert len(list(iter_records(path, told=shares.append))) == 130
    assert shares == sorted(shares)
    assert shares == pytest.approx([64 / 130, 128 / 130], abs=0.01)
