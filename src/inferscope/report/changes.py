"""What changed from one set of requests to another, setup by setup."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from inferscope.report.chart import COLOURS, Chart, Drawing, Grid, in_chart, setup_label
from inferscope.report.comparison import headline, opinion_lines
from inferscope.report.digest import SetupSum
from inferscope.report.phase_sums import median
from inferscope.report.units import UNKNOWN, clean, count, duration_ns, ratio

if TYPE_CHECKING:
    from inferscope.analysis.change import Change as ChangeOfOne
    from inferscope.analysis.comparison import Comparison
    from inferscope.report.digest import Digest, Setup

__all__ = ["Change", "Changes", "change_chart", "change_grid", "compared", "medians"]

NO_INTERVAL = "no interval"
_SECTIONS = {"Verdicts": "verdict", "Predicted and achieved": "prediction", "Output tokens": "output tokens"}
"""What a comparison says in words, and how a note on it begins; what it cannot tell stands in the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One quantity before and after.

    Attributes:
        what: The quantity, and of what.
        before_ns: Median; None where unknown.
        after_ns: Median; None where unknown.
        before_count: On how many observations it rests: requests, or medians of turns.
        after_count: Likewise.
        ratio: After over before; None where one is unknown.
        low: Lower end of the ratio's interval; None where there is none.
        high: Upper end.
        verdict: In a few words: "faster", "slower", "cannot tell", "no interval".
    """

    what: str
    before_ns: float | None
    after_ns: float | None
    before_count: int | None
    after_count: int | None
    ratio: float | None
    low: float | None = None
    high: float | None = None
    verdict: str = NO_INTERVAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """All of them.

    Attributes:
        rows: One per quantity and setup.
        method: How they were obtained, in words.
        notes: What keeps the sets from being comparable.
    """

    rows: tuple[Change, ...]
    method: str
    notes: tuple[str, ...] = ()


def medians(baseline: Digest, found: Digest) -> Changes:
    """Medians side by side, of the setups that both sets have; the attention implementation may differ."""
    before, after = _by_work(baseline), _by_work(found)
    several = len({work.family for work in (*before, *after) if work in before and work in after}) > 1
    rows = []
    for work, (old, new) in {key: (before[key], after[key]) for key in before if key in after}.items():
        label = setup_label(work if several else replace(work, model="", dtype=None, device=None))
        quantities = (("wall", old.walls_ns, new.walls_ns), ("TTFT", old.ttfts_ns, new.ttfts_ns))
        for name, olds, news in (*quantities, ("TPOT", old.tpots_ns, new.tpots_ns)):
            first, second = median(olds), median(news)
            rows.append(
                Change(
                    what=f"{name} · {label}",
                    before_ns=first,
                    after_ns=second,
                    before_count=len(olds),
                    after_count=len(news),
                    ratio=second / first if first and second is not None else None,
                )
            )
    notes = _only("before", before, after) + _only("after", after, before)
    if not rows:
        notes.insert(0, "not the same work: no setup is in both sets, so nothing is compared")
    method = "Medians of each set side by side; no interval, so what is noise and what is not cannot be told."
    return Changes(rows=tuple(rows), method=method, notes=tuple(clean(note) for note in notes))


def _only(when: str, these: dict[Setup, SetupSum], those: dict[Setup, SetupSum]) -> list[str]:
    alone = [setup_label(work) for work in these if work not in those]
    return [f"only {when}, compared with nothing: {'; '.join(alone)}"] if alone else []


def compared(result: Comparison) -> Changes:
    """What `inferscope.compare` found: its times, with its intervals and answers, and what else it says in words."""
    rows = tuple(
        Change(
            what=clean(each.metric),
            before_ns=each.baseline,
            after_ns=each.candidate,
            before_count=each.baseline_observations,
            after_count=each.candidate_observations,
            ratio=each.ratio.value,
            low=each.ratio.low,
            high=each.ratio.high,
            verdict=f"{each.answer}: {each.why}" if each.why else each.answer,
        )
        for each in result.changes
        if each.kind == "time" and each.ratio is not None
    )
    _, matched = headline(result)
    notes = [f"not the same work: {each.what} was {each.baseline}, is {each.candidate}" for each in result.differences]
    notes += [
        f"{each.metric}: {ratio(each.baseline)} before, {ratio(each.candidate)} after" for each in _counts(result)
    ]
    notes += [
        line if title == "Notes" else f"{_SECTIONS[title]}: {line}"
        for title, lines in opinion_lines(result)
        if title == "Notes" or title in _SECTIONS
        for line in lines
    ]
    method = f"Requests {matched}; intervals as inferscope compare has them."
    return Changes(rows=rows, method=clean(method), notes=tuple(clean(note) for note in notes))


def _counts(result: Comparison) -> list[ChangeOfOne]:
    """Counts (launches, syncs, operators per token) that are not what they were."""
    return [each for each in result.changes if each.kind == "count" and each.answer in {"less", "more"}]


def _by_work(found: Digest) -> dict[Setup, SetupSum]:

    works: dict[Setup, SetupSum] = {}
    for each in found.setups.values():
        work = replace(each.setup, attention=None)
        works.setdefault(work, SetupSum(setup=work)).merge(each)
    return works


def change_grid(changes: Changes) -> Grid:
    """Before, after and ratio of every quantity."""
    rows = tuple(
        (
            each.what,
            duration_ns(each.before_ns),
            duration_ns(each.after_ns),
            count(each.before_count),
            count(each.after_count),
            UNKNOWN if each.ratio is None else f"× {ratio(each.ratio)}",  # noqa: RUF001 - times
            UNKNOWN if each.low is None or each.high is None else f"{ratio(each.low)} to {ratio(each.high)}",
            each.verdict,
        )
        for each in changes.rows
    )
    numbers = tuple(
        (None, each.before_ns, each.after_ns, None, None, each.ratio, each.low, None) for each in changes.rows
    )
    heading = ("what", "before", "after", "n before", "n after", "ratio", "interval", "verdict")
    return Grid(heading=heading, rows=rows, numbers=numbers)


def change_chart(changes: Changes) -> Chart | None:
    """Ratios of after to before, left of 1 where it is less; None where there are none."""
    known = [each for each in changes.rows if each.ratio]
    if not known:
        return None
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [each.ratio for each in known],
            "y": [in_chart(each.what) for each in known],
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [_span(each.high, each.ratio) for each in known],
                "arrayminus": [_span(each.ratio, each.low) for each in known],
            },
            "text": [f"× {ratio(each.ratio)}, {in_chart(each.verdict)}" for each in known],  # noqa: RUF001 - times
            "hovertemplate": "%{y}: %{text}<extra></extra>",
            "marker": {"size": 10, "color": COLOURS["blue"], "symbol": "diamond"},
        }
    ]
    one = {
        "type": "line",
        "x0": 1,
        "x1": 1,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"dash": "dot", "color": COLOURS["red"]},
    }
    layout = {
        "height": 120 + 26 * len(known),
        "xaxis": {"type": "log", "title": {"text": "after / before: left of 1 is less time"}},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "shapes": [one],
        "showlegend": False,
    }
    summary = f"Ratio of after to before for {len(known)} quantities."
    return Chart(key="changes", summary=summary, drawings=(Drawing(label="", data=data, layout=layout),))


def _span(upper: float | None, lower: float | None) -> float:
    return 0.0 if upper is None or lower is None else max(upper - lower, 0.0)
