"""A finished request becomes a result: its record, and the opinion on it."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING

from inferscope import notices
from inferscope.analysis import diagnosis
from inferscope.analysis.findings import find
from inferscope.analysis.raising import raised
from inferscope.capture.arms import arms_of
from inferscope.errors import InferscopeError
from inferscope.hardware import calibration, probe
from inferscope.opinion import Result
from inferscope.records import OwnOverhead
from inferscope.session.models import MODELS
from inferscope.surroundings import Around

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.capture.requests import Begun, Finished
    from inferscope.meters.budget import Governor
    from inferscope.records import GenerationRecord
    from inferscope.settings import Settings
    from inferscope.specs import DeviceSpec

__all__ = ["Maker"]


class Maker:
    """Makes the results of one session, on the background thread.

    Attributes:
        around: What is known beside the records.
    """

    def __init__(
        self, settings: Settings, device: DeviceSpec | None, governor: Governor, breathe: Callable[[], None]
    ) -> None:
        """Prepare.

        Args:
            settings: The session's.
            device: Ceilings to judge by; None to look for those of the model's device, once.
            governor: Told what each request has cost.
            breathe: Called between stretches of work, to let the interpreter serve others.
        """
        self._settings = settings
        self._device = device
        self._device_known = device is not None
        self._governor = governor
        self._breathe = breathe
        self.around = Around()

    def make(self, raw: Finished, begun: Begun) -> Result:
        """The result of a finished request."""
        model, doubt = MODELS.describe(raw, self._settings.cache_dir)
        self._breathe()
        record = raw.record(
            model,
            versions=_versions(),
            device_key=_machine_key(model.device or "cpu"),
            rank=_rank(),
            breathe=self._breathe,
        )
        self._governor.saw(record.wall_ns, record.ledger.self_ns - raw.sampled_ns)
        notes = (*record.notes, doubt) if doubt else record.notes
        record = replace(record, own_overhead=self._own_overhead(raw), notes=notes)
        return self._judge(record, begun.context)

    def _own_overhead(self, raw: Finished) -> OwnOverhead:
        """What observing costs, as far as is known by now; said once where it is more than it may be."""
        governor = self._governor
        if governor.exceeds:
            share, observed = governor.self_share or 0.0, governor.observed_share
            fewer = f"one request in {1 / observed:.1f} is observed"
            kept = fewer if observed < 1 else "set it, and fewer requests are observed"
            notices.warn(
                "overhead-budget",
                f"observing takes {share:.1%} of the time and the budget is {governor.share:.1%}: {kept}",
            )
        estimate = arms_of(raw.module()).estimate()
        return OwnOverhead(
            budget_share=governor.share,
            observed_share=self._settings.sample_rate * governor.observed_share,
            self_share=governor.self_share,
            per_token_ns=None if estimate is None else estimate.value_ns,
            low_ns=None if estimate is None else estimate.low_ns,
            high_ns=None if estimate is None else estimate.high_ns,
            observed=0 if estimate is None else estimate.observed,
            bare=0 if estimate is None else estimate.bare,
            provenance=None if estimate is None else "randomised",
        )

    def _judge(self, record: GenerationRecord, parent_context: object | None) -> Result:
        if not self._device_known:
            kind = (record.model.device or "cpu").partition(":")[0]
            self._device = calibration.current_device_spec(kind)
            self._device_known = True
        self._raise_roofs(record)
        opinion = diagnosis.diagnose(record, device=self._device)
        self._breathe()
        result = Result(record=record, diagnosis=opinion, findings=(), parent_context=parent_context)
        return replace(result, findings=find(record, opinion, surroundings=self.around.of(result)))

    def _raise_roofs(self, record: GenerationRecord) -> None:
        """Judge this request and those that follow by what it proves about the device, and say so once."""
        if self._device is None:
            return
        higher = raised(self._device, record)
        if higher is not self._device:
            self._device = higher
            notices.warn(
                "roof-raised",
                "a request was faster than a known ceiling of its device: its own rate is the ceiling from here on, "
                "in this session; `inferscope calibrate --refresh` on an idle machine measures anew",
                device=higher.name,
                request=record.request_id,
            )


def _rank() -> int | None:
    """Of this process among those that run a model together."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank())


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    names = ("inferscope", "torch", "transformers")
    found = []
    for name in names:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


@functools.cache
def _machine_key(device: str) -> str | None:
    """Identity of the device a model runs on; None where it cannot be told (several devices, or none of ours)."""
    try:
        return probe.identify(device).key or None
    except (InferscopeError, RuntimeError):
        return None
