"""How fast this device can be: measured once, kept in one file per device, refused where it does not fit.

The file's layout and every rule of refusal stand in docs/reference/calibration.md.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, TypeAlias

import torch

from inferscope import notices
from inferscope.analysis.kernels import product_shape
from inferscope.errors import CalibrationError, SettingError, UnknownDeviceError
from inferscope.hardware import calibration_file, cpu_roofs, cuda_roofs, host_costs, nvml, probe
from inferscope.hardware.conditions import Conditions
from inferscope.hardware.cpu_roofs import RejectedError
from inferscope.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from inferscope.specs import Ceiling, DeviceSpec, ModelSpec

__all__ = ["cached", "calibrate", "current_device_spec", "load"]

# Seconds per resource. With the two usual dtypes they come to 8.4; preparation takes one or two more.
_COMPUTE_S = 1.4
_COPY_S = 1.4
_GEMV_S = 1.0
_CACHE_S = 0.8
_DISPATCH_S = 0.5
_MODULE_S = 0.6
_SYNC_S = 0.3
_BESIDE_S = 0.5
_MOST_PRODUCTS = 8
_PRODUCT = "product_"


_Found: TypeAlias = "dict[tuple[str, str], Ceiling]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One resource to measure: what it is called, which attribute of `DeviceSpec` it becomes, and how."""

    label: str
    attribute: str
    dtype: str = ""
    run: Callable[[], Ceiling]


def calibrate(
    device: str = "cpu",
    *,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    cache_dir: Path | None = None,
    refresh: bool = False,
    model: ModelSpec | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> DeviceSpec:
    """The device with its measured ceilings: those in the file, and what is missing there is measured now.

    Each ceiling is the median of the best stretch of readings that agree within 5 %: the best, since a ceiling
    is what the device can sustain when nothing else disturbs it. A resource whose readings never agree has no
    ceiling and a sentence in `rejected`, and is tried again by the next call. Measured with the threads torch is
    set to; neither they nor the random state nor any default is changed. About ten seconds on a CPU for
    everything. The CUDA half has not been confirmed on hardware.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        dtypes: Of the matrix products, among float32, float16, bfloat16 and float64.
        cache_dir: Folder of the file; None for the one in the settings.
        refresh: Measure everything anew, for instance after a calibration that was made under load.
        model: On a GPU: its own layers are measured too, the largest eight, and raise the ceiling of its dtype where
            one of them is faster than the shapes that are always tried.
        progress: Called before each resource with its name and the share done so far (0..1), and at the end.

    Raises:
        UnknownDeviceError: There is no such device, or it is of a kind that is not measured.
        SettingError: A dtype is not among those above, or a model was given for a CPU, or one without counted
            operators or without one of these dtypes.
    """
    identity = probe.identify(device)
    if identity.kind not in {"cpu", "cuda"}:
        raise UnknownDeviceError(f"no calibration for {device!r}: only cpu and cuda devices are measured")
    _check_dtypes(dtypes)
    layers = _layers(identity, model)
    path = calibration_file.file_of(_folder(cache_dir), identity.key)
    kept = None
    # A file that cannot be used is no news here: measuring anew is the remedy.
    with contextlib.suppress(CalibrationError):
        kept = calibration_file.read(path, identity.key)
    if kept is not None:
        dtypes = tuple(dict.fromkeys((*kept.dtypes, *dtypes)))
    found = {} if kept is None or refresh else _ceilings(kept.device)
    steps = [step for step in _steps(identity, device, dtypes, layers) if (step.attribute, step.dtype) not in found]
    if kept is not None and not steps:
        return kept.device
    spec = _measure(identity, steps, found, progress)
    _keep(path, dtypes, spec)
    return spec


def load(path: Path, expect_key: str) -> DeviceSpec:
    """The calibrated device in a file.

    Args:
        path: The file.
        expect_key: Key of the device it has to be of, as `identify` says.

    Raises:
        CalibrationError: It is missing, damaged, of another layout, of another device, or holds numbers that no
            device has; the message names the file and the reason.
    """
    return calibration_file.read(path, expect_key).device


def cached(device: str = "cpu", cache_dir: Path | None = None) -> DeviceSpec | None:
    """The stored calibration of this device, None where there is none that can be used. Measures nothing.

    A file that is there but cannot be used is reported once and then ignored: this runs in the user's calls.

    Args:
        device: torch device string.
        cache_dir: Folder of the file; None for the one in the settings.
    """
    try:
        identity = probe.identify(device)
    except UnknownDeviceError:
        return None
    return _stored(identity, cache_dir)


def current_device_spec(device: str = "cpu", cache_dir: Path | None = None) -> DeviceSpec:
    """The best that is known about the device without measuring.

    That is its calibration where one is stored; else, for a GPU that is in the catalogue beyond doubt, what the
    datasheet promises; else what the device says about itself, without ceilings.

    Args:
        device: torch device string.
        cache_dir: Folder of the calibrations; None for the one in the settings.

    Raises:
        UnknownDeviceError: There is no such device.
    """
    identity = probe.identify(device)
    kept = _stored(identity, cache_dir)
    if kept is not None:
        return kept
    row = probe.datasheet(device) if identity.kind == "cuda" else None
    return identity if row is None else _with_datasheet(identity, row)


def _folder(cache_dir: Path | None) -> Path:
    return Settings.from_environment().cache_dir / "calibration" if cache_dir is None else cache_dir


def _check_dtypes(dtypes: tuple[str, ...]) -> None:
    if isinstance(dtypes, str) or not dtypes or not set(dtypes) <= set(calibration_file.DTYPES):
        raise SettingError(f"dtypes={dtypes!r}: expected a tuple of {', '.join(calibration_file.DTYPES)}")


def _layers(identity: DeviceSpec, model: ModelSpec | None) -> tuple[tuple[str, int, int], ...]:
    """(dtype, inputs, outputs) of a model's largest linear layers.

    Raises:
        SettingError: It is for a CPU, or has no counted operators, or no dtype that is measured.
    """
    if model is None:
        return ()
    if identity.kind != "cuda":
        raise SettingError(f"model={model.name!r}: a model's own layers are measured on a CUDA device only")
    if model.cost is None or model.dtype not in calibration_file.DTYPES:
        raise SettingError(
            f"model={model.name!r}: no counted operators, or a dtype ({model.dtype}) that is not measured"
        )
    shapes = {shape for entry in model.cost.operators if (shape := product_shape(entry.group)) is not None}
    largest = sorted(shapes, key=lambda shape: (-shape[0] * shape[1], shape))[:_MOST_PRODUCTS]
    return tuple((model.dtype, inputs, outputs) for inputs, outputs in largest)


def _stored(identity: DeviceSpec, cache_dir: Path | None) -> DeviceSpec | None:
    if not identity.key:
        return None
    path = calibration_file.file_of(_folder(cache_dir), identity.key)
    try:
        return load(path, identity.key)
    except CalibrationError as error:
        if not isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            notices.warn(
                CalibrationError.slug,
                f"a stored calibration is ignored: {error} (or delete the file); until then there are no"
                " measured ceilings",
            )
        return None


def _with_datasheet(identity: DeviceSpec, row: DeviceSpec) -> DeviceSpec:
    return replace(
        identity,
        compute_flops_per_s=row.compute_flops_per_s,
        copy_bytes_per_s=row.copy_bytes_per_s,
        certainty=row.certainty,
    )


def _keep(path: Path, dtypes: tuple[str, ...], spec: DeviceSpec) -> None:
    provenance = {
        "inferscope": _version(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average_1_min": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
    }
    content = calibration_file.CalibrationFile(
        schema=calibration_file.SCHEMA, dtypes=dtypes, device=spec, provenance=provenance
    )
    try:
        calibration_file.write(path, content)
    except OSError as error:
        notices.warn(
            "cache-unwritable",
            f"the calibration was measured but cannot be kept in {path.parent}: {error.strerror or error}; set"
            " INFERSCOPE_CACHE_DIR to a folder that can be written, or it is measured again each time",
        )


def _version() -> str:
    try:
        return metadata.version("inferscope")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def _steps(
    identity: DeviceSpec, device: str, dtypes: tuple[str, ...], layers: tuple[tuple[str, int, int], ...] = ()
) -> list[_Step]:
    target = probe.parse_device(device)
    on_gpu = identity.kind == "cuda"
    steps = _cuda_steps(identity, target, dtypes, layers) if on_gpu else _cpu_steps(identity, dtypes)
    return [
        *steps,
        _Step(
            label="one operator",
            attribute="dispatch_ns",
            run=functools.partial(host_costs.dispatch_ns, target, _DISPATCH_S),
        ),
        _Step(
            label="one operator in a module",
            attribute="module_op_ns",
            run=functools.partial(host_costs.module_op_ns, target, _MODULE_S),
        ),
        _Step(
            label="reading one number",
            attribute="sync_ns",
            run=functools.partial(host_costs.sync_ns, target, _SYNC_S),
        ),
    ]


def _cpu_steps(identity: DeviceSpec, dtypes: tuple[str, ...]) -> list[_Step]:
    cache, memory = identity.cache_bytes, probe.available_memory_bytes()
    products = [
        _Step(
            label=f"matrix product in {dtype}",
            attribute="compute_flops_per_s",
            dtype=dtype,
            run=functools.partial(cpu_roofs.gemm, getattr(torch, dtype), _COMPUTE_S),
        )
        for dtype in dtypes
    ]
    vectors = [
        _Step(
            label=f"matrix times vector in {dtype}",
            attribute="gemv_bytes_per_s",
            dtype=dtype,
            run=functools.partial(cpu_roofs.gemv, getattr(torch, dtype), cache, memory, _GEMV_S),
        )
        for dtype in dtypes
    ]
    copies = [
        _Step(
            label="copy past the cache",
            attribute="copy_bytes_per_s",
            run=functools.partial(cpu_roofs.copy, cache, memory, _COPY_S),
        ),
        _Step(
            label="copy inside the cache",
            attribute="cache_bytes_per_s",
            run=functools.partial(cpu_roofs.cache_copy, cache, _CACHE_S),
        ),
    ]
    return [*products, *vectors, *copies]


def _cuda_steps(
    identity: DeviceSpec, target: torch.device, dtypes: tuple[str, ...], layers: tuple[tuple[str, int, int], ...]
) -> list[_Step]:
    """The same resources on a GPU, and what is measured beside them. Not yet confirmed on hardware."""
    row = probe.datasheet(str(target))
    bandwidth = None if row is None else row.copy_bytes_per_s
    roofs = cuda_roofs.CudaRoofs(target, identity.cache_bytes, Conditions(identity.key, nvml.shared().read))

    def step(label: str, name: str, measure: Callable[[], Ceiling], published: Ceiling | None, dtype: str) -> _Step:
        return _Step(
            label=label,
            attribute=name,
            dtype=dtype,
            run=lambda: cuda_roofs.within_datasheet(measure(), row, published),
        )

    steps = []
    for dtype in dtypes:
        kind, peak = getattr(torch, dtype), _published_peak(row, dtype)
        gemm = functools.partial(roofs.gemm, kind, _COMPUTE_S)
        gemv = functools.partial(roofs.gemv, kind, _GEMV_S)
        steps += [
            step(f"matrix product in {dtype}", "compute_flops_per_s", gemm, peak, dtype),
            step(f"matrix times vector in {dtype}", "gemv_bytes_per_s", gemv, bandwidth, dtype),
        ]
    in_cache = functools.partial(roofs.cache_copy, _CACHE_S)
    steps += [
        step("copy past the cache", "copy_bytes_per_s", functools.partial(roofs.copy, _COPY_S), bandwidth, ""),
        step("copy inside the cache", "cache_bytes_per_s", in_cache, None, ""),
        step("triad", "beside", functools.partial(roofs.triad, _BESIDE_S), bandwidth, "triad_bytes_per_s"),
        step("fill", "beside", functools.partial(roofs.fill, _BESIDE_S), bandwidth, "fill_bytes_per_s"),
        step("node of a graph", "beside", functools.partial(roofs.graph_node_ns, _BESIDE_S), None, "graph_node_ns"),
    ]
    for dtype, inputs, outputs in layers:
        product = functools.partial(roofs.product, getattr(torch, dtype), inputs, outputs, _BESIDE_S)
        size = f"{dtype}_{inputs}x{outputs}"
        label, peak = f"layer {inputs} x {outputs} in {dtype}", _published_peak(row, dtype)
        steps.append(step(label, "beside", product, peak, f"{_PRODUCT}{size}_flops_per_s"))
    return steps


def _published_peak(row: DeviceSpec | None, dtype: str) -> Ceiling | None:
    # With reduced float32 precision allowed, a float32 product runs on the tensor cores.
    listed = "tf32" if dtype == "float32" and probe.float32_precision() != "highest" else dtype
    return None if row is None else row.compute_flops_per_s.get(listed)


def _raised(found: _Found) -> _Found:
    """The same, the ceiling of a dtype no lower than what a layer of some model reached in it."""
    raised = dict(found)
    for (attribute, name), product in found.items():
        dtype = name.removeprefix(_PRODUCT).partition("_")[0]
        peak = raised.get(("compute_flops_per_s", dtype))
        if attribute == "beside" and name.startswith(_PRODUCT) and peak is not None and product.value > peak.value:
            raised["compute_flops_per_s", dtype] = product
    return raised


def _measure(
    identity: DeviceSpec, steps: list[_Step], known: _Found, progress: Callable[[str, float], None] | None
) -> DeviceSpec:
    found = dict(known)
    rejected: list[str] = []
    # The user's autocast would turn a float32 product into another one; both contexts undo themselves.
    with torch.no_grad(), torch.autocast(identity.kind, enabled=False):
        for number, step in enumerate(steps):
            if progress is not None:
                progress(step.label, number / len(steps))
            try:
                found[step.attribute, step.dtype] = step.run()
            except RejectedError as error:
                rejected.append(f"{step.label}: {error}")
            except (RuntimeError, MemoryError) as error:  # no kernel for the dtype, or no memory
                reason = (str(error).splitlines() or [""])[0]
                rejected.append(f"{step.label}: {type(error).__name__}: {reason}")
    if progress is not None:
        progress("done", 1.0)
    found = _raised(found)
    return replace(
        identity,
        compute_flops_per_s=_by_dtype(found, "compute_flops_per_s"),
        copy_bytes_per_s=found.get(("copy_bytes_per_s", "")),
        gemv_bytes_per_s=_by_dtype(found, "gemv_bytes_per_s"),
        cache_bytes_per_s=found.get(("cache_bytes_per_s", "")),
        dispatch_ns=found.get(("dispatch_ns", "")),
        module_op_ns=found.get(("module_op_ns", "")),
        sync_ns=found.get(("sync_ns", "")),
        beside=_by_dtype(found, "beside"),
        measured_unix_ns=time.time_ns(),
        rejected=tuple(rejected),
    )


def _by_dtype(found: _Found, attribute: str) -> dict[str, Ceiling]:
    """By dtype, and what stands beside the ceilings by name."""
    return {dtype: roof for (name, dtype), roof in found.items() if name == attribute}


def _ceilings(spec: DeviceSpec) -> _Found:
    """The ceilings a device has, by attribute and dtype, or name ("" where the attribute has neither)."""
    found = {("compute_flops_per_s", dtype): roof for dtype, roof in spec.compute_flops_per_s.items()}
    found |= {("gemv_bytes_per_s", dtype): roof for dtype, roof in spec.gemv_bytes_per_s.items()}
    found |= {("beside", name): roof for name, roof in spec.beside.items()}
    scalars = {
        "copy_bytes_per_s": spec.copy_bytes_per_s,
        "cache_bytes_per_s": spec.cache_bytes_per_s,
        "dispatch_ns": spec.dispatch_ns,
        "module_op_ns": spec.module_op_ns,
        "sync_ns": spec.sync_ns,
    }
    return found | {(name, ""): roof for name, roof in scalars.items() if roof is not None}
