"""What was sampled of single passes: recordings, looks at where the host waited, counts at the driver.

They are kept beside the rows, with a moment on the request's clock, and meet their pass when it is placed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.capture.busy import Kind
from inferscope.capture.census import PassCount, Signature, step_of
from inferscope.capture.frames import UNREADABLE, Flag, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from inferscope.capture.census import Census, Step
    from inferscope.capture.frames import Request
    from inferscope.capture.phases import PhaseSums
    from inferscope.meters.counters import Counts
    from inferscope.meters.deep import Window
    from inferscope.meters.sync_points import SyncWindow
    from inferscope.specs import ModelSpec

__all__ = ["Sampled"]


class Sampled:
    """Of one request; passes are placed in the order in which they ran."""

    def __init__(
        self,
        windows: Sequence[Window] = (),
        looks: Sequence[SyncWindow] = (),
        counts: Sequence[tuple[int, Counts]] = (),
    ) -> None:
        """Take what there is; more may be added to each while the request runs.

        Args:
            windows: Recordings.
            looks: Looks at where the host waited.
            counts: A moment right after a pass, and what it asked of the driver.
        """
        self._windows, self._windows_placed = windows, 0
        self._looks, self._looks_placed = looks, 0
        self._counts, self._counts_placed = counts, 0
        self._counted: list[tuple[Step, PassCount]] = []

    def place(self, phase: PhaseSums, name: str, row: Sequence[int]) -> None:
        """A pass is placed: whatever was sampled of it is its phase's.

        Args:
            phase: That phase.
            name: The pass's full name.
            row: The pass.
        """
        told = UNREADABLE not in row[Row.Q : Row.BATCH + 1]
        context = row[Row.PAST] + row[Row.Q] if told else 0
        step = step_of(name, row[Row.BATCH], context) if told else None
        if step is not None:
            phase.add_step(step)
        self._place_window(phase, name, Kind(phase.name, row[Row.BATCH], row[Row.Q]) if told else None, row, context)
        self._place_look(phase, row)
        self._place_count(step, row)

    def _place_window(self, phase: PhaseSums, name: str, kind: Kind | None, row: Sequence[int], context: int) -> None:
        """What was recorded of this pass; of one that was cut short nothing is of use."""
        while self._windows_placed < len(self._windows):
            window = self._windows[self._windows_placed]
            if window.opened_ns > row[Row.LEFT]:
                return
            self._windows_placed += 1
            if window.opened_ns < row[Row.ENTERED] or row[Row.FLAGS] & Flag.ABORTED:
                window.discard()
                continue
            phase.deep.unread.append((window, name, kind, context))

    def _place_look(self, phase: PhaseSums, row: Sequence[int]) -> None:
        """Where the host waited from this pass to the next one."""
        while self._looks_placed < len(self._looks):
            look = self._looks[self._looks_placed]
            if look.opened_ns > row[Row.LEFT]:
                return
            self._looks_placed += 1
            if look.opened_ns >= row[Row.ENTERED] and not row[Row.FLAGS] & Flag.ABORTED:
                phase.looks.append(look)

    def _place_count(self, step: Step | None, row: Sequence[int]) -> None:
        """What was counted at the driver within this pass."""
        while self._counts_placed < len(self._counts):
            at_ns, counts = self._counts[self._counts_placed]
            if at_ns > row[Row.LEFT]:
                return
            self._counts_placed += 1
            if at_ns >= row[Row.ENDED] and step is not None and not row[Row.FLAGS] & Flag.ABORTED:
                whole = PassCount(counts.launches, counts.graph_launches, counts.syncs, "kernel", "native")
                self._counted.append((step, whole))

    def settle(
        self, census: Census, phases: Iterable[PhaseSums], request: Request, model: ModelSpec
    ) -> Callable[[Step], Signature]:
        """Put all that was counted into the census.

        Args:
            census: The model's.
            phases: Those of the request, whose recordings have been read.
            request: Tells its passes from those of others that launch otherwise.
            model: Tells so, too.

        Returns:
            From the kind of a pass to its signature.
        """

        def signed(step: Step) -> Signature:
            return Signature(step, model.dtype, model.attention, request.cache_class, request.compiled)

        for step, count in (*self._counted, *(one for phase in phases for one in phase.deep.counted)):
            census.add(signed(step), count, model=model.name)
        return signed
