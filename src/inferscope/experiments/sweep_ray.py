"""A sweep's jobs on a Ray cluster: one bench per GPU, or per node where there are none. Needs the extra `ray`."""

from __future__ import annotations

import functools
import importlib
import os
from typing import TYPE_CHECKING, Any

from inferscope.errors import InferscopeError, MissingExtraError, SettingError
from inferscope.experiments.sweep_bench import Bench, load_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inferscope.analysis.sweep_points import Job, Setting
    from inferscope.experiments.sweep import SweepOptions
    from inferscope.records import GenerationRecord
    from inferscope.specs import ModelSpec

__all__ = ["RayExecutor"]


class RayExecutor:
    """Benches in a cluster; each takes its next job when it has finished one. A context manager.

    Points of one curve then come from several machines. Where those differ, so do the times: records say where they
    were made (`device_key`).

    Attributes:
        workers: How many benches there are.
    """

    def __init__(self, options: SweepOptions, *, labels: tuple[tuple[str, str], ...], limit_bytes: int | None) -> None:
        """Join the cluster that RAY_ADDRESS names, or start one on this machine, and place the benches.

        Args:
            options: Of the sweep; the model must be found under the same name on every node.
            labels: For every record.
            limit_bytes: Memory that requests must fit into.

        Raises:
            MissingExtraError: Ray is not installed.
            SettingError: The cluster has no device of that kind.
        """
        self._ray: Any = _ray()
        self._started = not self._ray.is_initialized()
        if self._started:
            here = {} if "RAY_ADDRESS" in os.environ else {"address": "local", "_node_ip_address": "127.0.0.1"}
            self._ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", **here)
        try:
            needs, self.workers = self._places(options.device)
        except SettingError:
            self._leave()
            raise
        actor = self._ray.remote(**needs)(Bench)
        load = functools.partial(load_model, options.model, device=options.device, seed=options.seed)
        self._benches = [
            actor.remote(load, labels=labels, memory_limit_bytes=limit_bytes, seed=options.seed)
            for _ in range(self.workers)
        ]

    def __enter__(self) -> RayExecutor:
        """Itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Free the benches, and the cluster where it was started here."""
        for bench in self._benches:
            self._ray.kill(bench)
        self._leave()

    def _leave(self) -> None:
        if self._started:
            self._ray.shutdown()

    def describe(self, setting: Setting) -> ModelSpec:
        """The model in a setting, as one of the benches sees it."""
        found: ModelSpec = self._got(self._benches[0].describe.remote(setting))
        return found

    def measure(self, jobs: Iterator[Job]) -> Iterator[GenerationRecord]:
        """A record for each job, as they come."""
        running: dict[Any, Any] = {}
        for bench in self._benches:
            self._next(jobs, bench, running)
        while running:
            (done, *_), _ = self._ray.wait(list(running), num_returns=1)
            bench = running.pop(done)
            record: GenerationRecord = self._got(done)
            yield record
            # Only now: what this record says may make the next job pointless.
            self._next(jobs, bench, running)

    def _next(self, jobs: Iterator[Job], bench: Any, running: dict[Any, Any]) -> None:  # noqa: ANN401 - Ray's own
        job = next(jobs, None)
        if job is not None:
            running[bench.measure.remote(job)] = bench

    def _got(self, reference: Any) -> Any:  # noqa: ANN401 - whatever the bench returned
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            # The bench's own error without Ray's traceback in its text, so that a mistake stays one line.
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            kind = type(error).__name__
            raise InferscopeError(f"a bench of the Ray cluster was lost ({kind}): go on with --resume") from error

    def _places(self, device: str) -> tuple[dict[str, Any], int]:
        """What each bench asks for, and how many there are."""
        if device.partition(":")[0] == "cuda":
            gpus = int(self._ray.cluster_resources().get("GPU", 0))
            if gpus < 1:
                raise SettingError(f"--device {device}: the Ray cluster has no GPU")
            return {"num_gpus": 1, "num_cpus": 1}, gpus
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        cores = int(min(node["Resources"].get("CPU", 1) for node in nodes))
        # All cores of a node: benches must not take them from each other.
        return {"num_cpus": max(1, cores)}, len(nodes)


def _ray() -> Any:  # noqa: ANN401 - Ray is not there when types are checked
    if "RAY_ADDRESS" not in os.environ:
        # Read when Ray is imported: nothing is reported to its makers, and a cluster of this machine alone listens on
        # 127.0.0.1 alone.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError(f"--ray needs Ray ({error}): install inferscope with its extra [ray]") from error
