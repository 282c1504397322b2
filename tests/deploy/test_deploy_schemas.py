"""What deploy/ relies on of each tool's configuration, as its documentation has it: a misspelt key fails."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"

TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer", "minimum": 1}, {"type": "boolean"}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
SHARE = {"type": "number", "exclusiveMinimum": 0, "maximum": 100}
ADDRESS = {"type": "string", "pattern": r"^[a-z0-9.]+:\d+$"}
URL = {"type": "string", "pattern": r"^http://[a-z]+:\d+$"}
EMPTY = {"type": ["object", "null"], "maxProperties": 0}


def exactly(required=None, /, **optional):
    """An object with these properties and no others; the first argument's must be there."""
    required = required or {}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": {**required, **optional},
    }


def named(**types):
    """Components: keys are a type, and a name after a slash where there are several."""
    patterns = {f"^{name}(/[a-z-]+)?$": schema for name, schema in types.items()}
    return {"type": "object", "additionalProperties": False, "patternProperties": patterns}


def texts(*allowed):
    return {"type": "array", "minItems": 1, "items": {"enum": list(allowed)} if allowed else TEXT}


def any_name(schema):
    return {"type": "object", "minProperties": 1, "additionalProperties": schema}


PIPELINES = named(
    traces=exactly({"receivers": texts(), "exporters": texts()}, processors=texts()),
    metrics=exactly({"receivers": texts(), "exporters": texts()}, processors=texts()),
)
RECEIVERS = named(otlp=exactly({"protocols": exactly(grpc=exactly(endpoint=ADDRESS), http=exactly(endpoint=ADDRESS))}))

PLAIN_POLICIES = {
    "status_code": exactly({"status_codes": texts("ERROR", "OK", "UNSET")}),
    "latency": exactly({"threshold_ms": NUMBER}, upper_threshold_ms=NUMBER),
    "string_attribute": exactly({"key": TEXT, "values": texts()}, invert_match=FLAG),
    "probabilistic": exactly({"sampling_percentage": SHARE}),
}


def policies(kinds):
    """Each has its own settings, under the name of its type."""
    return [exactly({"name": TEXT, "type": {"const": kind}, kind: schema}) for kind, schema in kinds.items()]


SUB_POLICIES = {"type": "array", "minItems": 1, "items": {"oneOf": policies(PLAIN_POLICIES)}}
POLICIES = {
    "type": "array",
    "minItems": 1,
    "items": {"oneOf": policies({**PLAIN_POLICIES, "and": exactly({"and_sub_policy": SUB_POLICIES})})},
}

COLLECTOR = exactly(
    {
        "receivers": RECEIVERS,
        "processors": named(
            memory_limiter=exactly(
                {"check_interval": DURATION, "limit_percentage": SHARE}, spike_limit_percentage=SHARE
            ),
            tail_sampling=exactly({"policies": POLICIES}, decision_wait=DURATION, num_traces=NUMBER),
            batch=exactly(timeout=DURATION, send_batch_size=NUMBER, send_batch_max_size=NUMBER),
        ),
        "connectors": named(
            span_metrics=exactly(
                namespace=TEXT,
                histogram=exactly(
                    unit={"enum": ["ms", "s"]},
                    explicit=exactly({"buckets": {"type": "array", "items": DURATION, "uniqueItems": True}}),
                ),
                dimensions={"type": "array", "items": exactly({"name": TEXT}, default=TEXT)},
                exemplars=exactly({"enabled": FLAG}, max_per_data_point=NUMBER),
                metrics_flush_interval=DURATION,
                metrics_expiration=DURATION,
            ),
            forward=EMPTY,
        ),
        "exporters": named(
            otlp_grpc=exactly({"endpoint": ADDRESS}, tls=exactly(insecure=FLAG)),
            prometheus=exactly({"endpoint": ADDRESS}, enable_open_metrics=FLAG, metric_expiration=DURATION),
        ),
        "service": exactly({"pipelines": PIPELINES}),
    }
)
JAEGER = exactly(
    {
        "service": exactly({"extensions": texts("jaeger_storage", "jaeger_query"), "pipelines": PIPELINES}),
        "extensions": exactly(
            {
                "jaeger_query": exactly({"storage": exactly({"traces": TEXT}, metrics=TEXT)}),
                "jaeger_storage": exactly(
                    {"backends": any_name(exactly({"memory": exactly({"max_traces": NUMBER})}))},
                    metric_backends=any_name(
                        exactly(
                            {"prometheus": exactly({"endpoint": URL}, normalize_calls=FLAG, normalize_duration=FLAG)}
                        )
                    ),
                ),
            }
        ),
        "receivers": RECEIVERS,
        "processors": named(batch=EMPTY),
        "exporters": exactly({"jaeger_storage_exporter": exactly({"trace_storage": TEXT})}),
    }
)
PROMETHEUS = exactly(
    {
        "scrape_configs": {
            "type": "array",
            "items": exactly(
                {"job_name": TEXT, "static_configs": {"type": "array", "items": exactly({"targets": texts()})}},
                honor_labels=FLAG,
            ),
        }
    },
    **{"global": exactly(scrape_interval=DURATION)},
)
DATASOURCES = exactly(
    {
        "apiVersion": {"const": 1},
        "datasources": {
            "type": "array",
            "items": exactly(
                {"name": TEXT, "type": {"enum": ["prometheus", "jaeger"]}, "uid": TEXT, "url": URL},
                access={"enum": ["proxy"]},
                isDefault=FLAG,
                jsonData=exactly(
                    exemplarTraceIdDestinations={
                        "type": "array",
                        "items": exactly({"name": TEXT, "datasourceUid": TEXT}),
                    }
                ),
            ),
        },
    }
)
DASHBOARDS = exactly(
    {
        "apiVersion": {"const": 1},
        "providers": {
            "type": "array",
            "items": exactly(
                {"name": TEXT, "type": {"const": "file"}, "options": exactly({"path": TEXT})}, allowUiUpdates=FLAG
            ),
        },
    }
)
SOURCE = exactly({"type": {"enum": ["prometheus", "jaeger"]}, "uid": TEXT})
PLACE = {"type": "integer", "minimum": 0}
PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "gridPos"],
    "properties": {
        "type": {"enum": ["row", "timeseries", "stat", "text", "table", "barchart", "gauge"]},
        "gridPos": exactly({"h": NUMBER, "w": NUMBER, "x": PLACE, "y": PLACE}),
        "datasource": SOURCE,
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": exactly(
                {"datasource": SOURCE, "expr": TEXT, "refId": {"type": "string", "pattern": "^[A-Z]$"}},
                legendFormat=TEXT,
                exemplar=FLAG,
            ),
        },
    },
    "if": {"properties": {"type": {"const": "timeseries"}}},
    "then": {"required": ["targets", "datasource", "fieldConfig"]},
}
DASHBOARD = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "templating", "time"],
    "properties": {
        "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "panels": {"type": "array", "minItems": 1, "items": PANEL},
        "time": exactly({"from": TEXT, "to": TEXT}),
    },
}
FILES = {
    "collector.yaml": COLLECTOR,
    "jaeger.yaml": JAEGER,
    "prometheus.yaml": PROMETHEUS,
    "grafana/provisioning/datasources/datasources.yaml": DATASOURCES,
    "grafana/provisioning/dashboards/dashboards.yaml": DASHBOARDS,
    "grafana/dashboards/inferscope.json": DASHBOARD,
}
# Names that the file itself chooses; the tests of what refers to what hold them.
CHOSEN = {("extensions", "jaeger_storage", "backends"), ("extensions", "jaeger_storage", "metric_backends")}


def loaded(name):
    text = (DEPLOY / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def misspelt(value, path=()):
    """The same document once for each of its keys, with that key misspelt."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if path not in CHOSEN:
                yield (*path, key), {f"x{name}" if name == key else name: of for name, of in value.items()}
            for where, changed in misspelt(inner, (*path, key)):
                yield where, {**value, key: changed}
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            for where, changed in misspelt(inner, (*path, index)):
                yield where, [*value[:index], changed, *value[index + 1 :]]


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_is_what_its_tool_takes(name):
    jsonschema.Draft202012Validator.check_schema(FILES[name])
    jsonschema.validate(loaded(name), FILES[name])


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".yaml")])
def test_no_key_can_be_misspelt(name):
    validator = jsonschema.Draft202012Validator(FILES[name])
    changed = list(misspelt(loaded(name)))
    assert len(changed) > 5
    assert [where for where, document in changed if validator.is_valid(document)] == []


def test_every_file_has_a_schema():
    there = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.is_file()}
    assert there == {*FILES, "compose.yaml"}  # whose schema is beside the tests of what it names
