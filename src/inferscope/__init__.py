"""inferscope says why a language model request took as long as it did.

    with inferscope.trace(model) as session:
        model.generate(**inputs)
    print(session.last)

Names are resolved when first used: importing the package loads neither torch nor opentelemetry.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inferscope.analysis.cost import PassCost as PassCost
    from inferscope.analysis.memory import MemoryAccount as MemoryAccount
    from inferscope.analysis.prediction import Prediction as Prediction
    from inferscope.analysis.verdict import Diagnosis as Diagnosis
    from inferscope.analysis.verdict import Evidence as Evidence
    from inferscope.analysis.verdict import Finding as Finding
    from inferscope.capture.loops import phase as phase
    from inferscope.comparing import Comparison as Comparison
    from inferscope.comparing import compare as compare
    from inferscope.costing import cost as cost
    from inferscope.costing import memory as memory
    from inferscope.errors import InferscopeError as InferscopeError
    from inferscope.experiments.lint import LintReport as LintReport
    from inferscope.experiments.lint import lint as lint
    from inferscope.hardware.calibration import calibrate as calibrate
    from inferscope.integrations.auto import InferscopeInstrumentor as InferscopeInstrumentor
    from inferscope.monitor import BottleneckMonitor as BottleneckMonitor
    from inferscope.opinion import Result as Result
    from inferscope.opinion import diagnose as diagnose
    from inferscope.predicting import model_spec as model_spec
    from inferscope.predicting import predict as predict
    from inferscope.records import GenerationRecord as GenerationRecord
    from inferscope.session import Instrumentation as Instrumentation
    from inferscope.session import Session as Session
    from inferscope.session import instrument as instrument
    from inferscope.session import trace as trace
    from inferscope.sinks.jsonl import read_records as read_records
    from inferscope.sinks.setup import setup as setup
    from inferscope.specs import DeviceSpec as DeviceSpec
    from inferscope.specs import ModelSpec as ModelSpec

__version__ = "0.1.0"

_PLACES = {
    "BottleneckMonitor": "monitor",
    "Comparison": "comparing",
    "DeviceSpec": "specs",
    "Diagnosis": "analysis.verdict",
    "Evidence": "analysis.verdict",
    "Finding": "analysis.verdict",
    "GenerationRecord": "records",
    "InferscopeError": "errors",
    "InferscopeInstrumentor": "integrations.auto",
    "Instrumentation": "session",
    "LintReport": "experiments.lint",
    "MemoryAccount": "analysis.memory",
    "ModelSpec": "specs",
    "PassCost": "analysis.cost",
    "Prediction": "analysis.prediction",
    "Result": "opinion",
    "Session": "session",
    "calibrate": "hardware.calibration",
    "compare": "comparing",
    "cost": "costing",
    "diagnose": "opinion",
    "instrument": "session",
    "lint": "experiments.lint",
    "memory": "costing",
    "model_spec": "predicting",
    "phase": "capture.loops",
    "predict": "predicting",
    "read_records": "sinks.jsonl",
    "setup": "sinks.setup",
    "trace": "session",
}

__all__ = [
    "BottleneckMonitor",
    "Comparison",
    "DeviceSpec",
    "Diagnosis",
    "Evidence",
    "Finding",
    "GenerationRecord",
    "InferscopeError",
    "InferscopeInstrumentor",
    "Instrumentation",
    "LintReport",
    "MemoryAccount",
    "ModelSpec",
    "PassCost",
    "Prediction",
    "Result",
    "Session",
    "__version__",
    "calibrate",
    "compare",
    "cost",
    "diagnose",
    "instrument",
    "lint",
    "memory",
    "model_spec",
    "phase",
    "predict",
    "read_records",
    "setup",
    "trace",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes have any type
    if name not in _PLACES:
        raise AttributeError(f"module 'inferscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"inferscope.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
