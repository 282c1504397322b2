"""deploy/ without an engine: the files are well formed, what they name is there, and names are those of the code."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from inferscope.analysis.verdict import BOUNDS
from inferscope.sinks import hardware_semconv, semconv
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result

DEPLOY = Path(__file__).parents[2] / "deploy"
PINNED = r"^[a-z0-9.\-/]+:v?\d+\.\d+\.\d+$"
THIS_MACHINE = r"^127\.0\.0\.1:\d+:\d+$"
# The part of the Compose specification that is relied on; whatever else is written is a mistake here.
COMPOSE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "services"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["image", "ports"],
                "properties": {
                    "image": {"type": "string", "pattern": PINNED},
                    "command": {"type": "array", "items": {"type": "string"}},
                    "environment": {"type": "object", "additionalProperties": {"type": "string"}},
                    "volumes": {"type": "array", "items": {"type": "string", "pattern": r"^[^:]+:/[^:]+(:ro)?$"}},
                    "ports": {"type": "array", "items": {"type": "string", "pattern": THIS_MACHINE}},
                    "depends_on": {"type": "array", "items": {"type": "string"}},
                    "restart": {"enum": ["unless-stopped"]},
                },
            },
        },
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
    },
}
# What the collector's translation to Prometheus' names does with UCUM units.
UNITS = {
    "s": "seconds",
    "ms": "milliseconds",
    "By": "bytes",
    "W": "watts",
    "J": "joules",
    "Cel": "celsius",
    "Hz": "hertz",
}
# From the span_metrics connector's namespace and unit, as its documentation has them.
FROM_SPANS = {("calls", "counter", ""), ("duration", "histogram", "ms")}
FROM_PROMETHEUS = {"le", "job", "instance", "service_name", "span_name", "span_kind", "status_code"}
QUERY = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}")


def loaded(name):
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose():
    return loaded("compose.yaml")


@pytest.fixture(scope="module")
def collector():
    return loaded("collector.yaml")


@pytest.fixture(scope="module")
def dashboard():
    return json.loads((DEPLOY / "grafana/dashboards/inferscope.json").read_text(encoding="utf-8"))


def test_every_file_can_be_read():
    files = [path for path in DEPLOY.rglob("*") if path.is_file()]
    assert len(files) >= 7
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert (json.loads if path.suffix == ".json" else yaml.safe_load)(text), path


def test_the_compose_file_is_valid_pinned_and_open_to_this_machine_alone(compose):
    jsonschema.validate(compose, COMPOSE)
    for service in compose["services"].values():
        assert set(service.get("depends_on", ())) <= compose["services"].keys()
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (source.startswith("./") and (DEPLOY / source).exists()), source
    published = [port for service in compose["services"].values() for port in service["ports"]]
    assert len({port.split(":")[1] for port in published}) == len(published)


def test_the_schema_refuses_what_it_is_for(compose):
    service = compose["services"]["jaeger"]
    for wrong in (
        {"ports": ["16686:16686"]},
        {"ports": ["0.0.0.0:1:1"]},
        {"image": "jaeger:latest"},
        {"privileged": 1},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**compose, "services": {"jaeger": {**service, **wrong}}}, COMPOSE)


@pytest.mark.parametrize("name", ["collector.yaml", "jaeger.yaml"])
def test_every_component_of_a_pipeline_is_there_and_every_one_is_used(name):
    config = loaded(name)
    pipelines = config["service"]["pipelines"]
    connectors = set(config.get("connectors", ()))
    used = {role: set() for role in ("receivers", "processors", "exporters")}
    for pipeline in pipelines.values():
        for role, names in pipeline.items():
            used[role] |= set(names)
    assert used["receivers"] <= config["receivers"].keys() | connectors
    assert used["exporters"] <= config["exporters"].keys() | connectors
    assert used["processors"] == config["processors"].keys()
    assert (used["receivers"] & used["exporters"]) == connectors  # each ends one pipeline and begins another
    assert used["receivers"] | used["exporters"] == config["receivers"].keys() | config["exporters"].keys() | connectors
    assert set(config["service"].get("extensions", ())) == set(config.get("extensions", ()))


def test_metrics_are_made_of_all_spans_and_memory_is_guarded_first(collector):
    pipelines = collector["service"]["pipelines"]
    counted = [pipeline for pipeline in pipelines.values() if "span_metrics" in pipeline["exporters"]]
    assert all("tail_sampling" not in pipeline["processors"] for pipeline in counted)
    for pipeline in pipelines.values():
        if "otlp" in pipeline["receivers"]:
            assert pipeline["processors"][0] == "memory_limiter"
    assert pipelines["traces/kept"]["processors"] == ["tail_sampling", "batch"]  # a batch after the choice


def test_addresses_between_the_containers_are_right(compose, collector):
    jaeger = loaded("jaeger.yaml")
    exporters = collector["exporters"]
    port = jaeger["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    assert exporters["otlp_grpc/jaeger"]["endpoint"] == f"jaeger:{port}"
    (scrape,) = loaded("prometheus.yaml")["scrape_configs"]
    assert scrape["static_configs"] == [
        {"targets": [f"collector:{exporters['prometheus']['endpoint'].rpartition(':')[2]}"]}
    ]
    assert scrape["honor_labels"]
    sources = {
        source["uid"]: source for source in loaded("grafana/provisioning/datasources/datasources.yaml")["datasources"]
    }
    metrics = jaeger["extensions"]["jaeger_storage"]["metric_backends"]["span_metrics"]["prometheus"]["endpoint"]
    assert metrics == sources["prometheus"]["url"] == "http://prometheus:9090"
    assert sources["jaeger"]["url"] == "http://jaeger:16686"
    assert {"prometheus", "jaeger", "collector"} <= compose["services"].keys()
    for name, ports in (("collector", ("4317", "4318")), ("jaeger", ("16686",)), ("prometheus", ("9090",))):
        assert [port.rpartition(":")[2] for port in compose["services"][name]["ports"]] == list(ports)
    storage = jaeger["exporters"]["jaeger_storage_exporter"]["trace_storage"]
    query = jaeger["extensions"]["jaeger_query"]["storage"]
    assert storage == query["traces"]
    assert storage in jaeger["extensions"]["jaeger_storage"]["backends"]
    assert query["metrics"] in jaeger["extensions"]["jaeger_storage"]["metric_backends"]


def test_exemplars_have_a_way_all_through(compose, collector):
    assert collector["connectors"]["span_metrics"]["exemplars"]["enabled"]
    assert collector["exporters"]["prometheus"]["enable_open_metrics"]
    assert "--enable-feature=exemplar-storage" in compose["services"]["prometheus"]["command"]
    source = loaded("grafana/provisioning/datasources/datasources.yaml")["datasources"][0]
    assert source["jsonData"]["exemplarTraceIdDestinations"] == [{"name": "trace_id", "datasourceUid": "jaeger"}]


def test_grafana_finds_the_dashboard(compose):
    (provider,) = loaded("grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    grafana = compose["services"]["grafana"]
    mounted = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounted["./grafana/dashboards"] == provider["options"]["path"]
    assert mounted["./grafana/provisioning"] == "/etc/grafana/provisioning"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/inferscope.json"


def span_keys():
    tables = (semconv.REQUEST_START, semconv.REQUEST_END, semconv.PHASE)
    return {row.name for table in tables for row in table}


def test_the_collector_names_attributes_that_spans_have(collector):
    dimensions = [dimension["name"] for dimension in collector["connectors"]["span_metrics"]["dimensions"]]
    assert {"inferscope.phase", "inferscope.bound"} <= set(dimensions) <= span_keys()
    for policy in flat(collector["processors"]["tail_sampling"]["policies"]):
        if policy["type"] == "string_attribute":
            assert policy["string_attribute"]["key"] in span_keys()
            assert set(policy["string_attribute"]["values"]) <= set(BOUNDS)


def flat(policies):
    for policy in policies:
        yield policy
        yield from policy.get("and", {}).get("and_sub_policy", ())


def keeps(policy, spans):
    """What the processor's documentation says of the types of policies that are used."""
    options = policy[policy["type"]]
    if policy["type"] == "and":
        return all(keeps(part, spans) for part in options["and_sub_policy"])
    if policy["type"] == "status_code":
        return any(span.status.status_code is StatusCode[code] for span in spans for code in options["status_codes"])
    if policy["type"] == "latency":
        duration_ns = max(span.end_time for span in spans) - min(span.start_time for span in spans)
        return duration_ns >= options["threshold_ms"] * 1e6
    if policy["type"] == "string_attribute":
        return any(span.attributes.get(options["key"]) in options["values"] for span in spans)
    assert policy["type"] == "probabilistic"
    return None


def reasons(policies, **overrides):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    record = make_record(**{key: value for key, value in overrides.items() if key != "bound"})
    SpanSink(tracer_provider=provider)(make_result(record=record))
    spans = exporter.get_finished_spans()
    if "bound" in overrides:
        for span in spans:
            if "inferscope.bound" in span.attributes:
                span._attributes = {**span.attributes, "inferscope.bound": overrides["bound"]}
    return [policy["name"] for policy in policies if keeps(policy, spans)]


def test_the_traces_that_matter_are_kept(collector):
    policies = collector["processors"]["tail_sampling"]["policies"]
    assert reasons(policies) == []  # 0.7 s, bound by memory: a share of the rest
    assert reasons(policies, status="aborted", error_type="ValueError") == ["failed"]
    assert reasons(policies, bound="overhead") == ["held-back-by-overhead"]
    (share,) = [policy["probabilistic"] for policy in policies if policy["type"] == "probabilistic"]
    assert 0 < share["sampling_percentage"] < 100
    (slow,) = [policy["latency"]["threshold_ms"] for policy in policies if policy["type"] == "latency"]
    assert slow > 700


def translated(name, kind, unit):
    """A metric's series in Prometheus: dots become underscores, then unit, then `_total` or a histogram's parts."""
    base = name.replace(".", "_")
    whole, slash, per = unit.partition("/")
    parts = [UNITS.get(whole, "") if not whole.startswith("{") else ""]
    if slash:
        parts = [*parts, "per", {"s": "second"}.get(per, per.strip("{}"))]
    if unit == "1" and kind == "gauge":
        parts = ["ratio"]
    for part in filter(None, parts):
        base = base if base.endswith(f"_{part}") else f"{base}_{part}"
    if kind == "histogram":
        return {f"{base}_{part}" for part in ("bucket", "sum", "count")}
    return {f"{base}_total"} if kind == "counter" else {base}


def test_the_translation_is_the_collectors():
    assert translated("hw.gpu.utilization", "gauge", "1") == {"hw_gpu_utilization_ratio"}
    assert translated("hw.energy", "counter", "J") == {"hw_energy_joules_total"}
    assert translated("inferscope.gpu.pcie.rate", "gauge", "By/s") == {"inferscope_gpu_pcie_rate_bytes_per_second"}
    assert "a_b_seconds_bucket" in translated("a.b", "histogram", "s")
    assert "a_launches_sum" in translated("a.launches", "histogram", "{launch}")


def known_series():
    """Series by the labels they have."""
    found = {}
    for row in hardware_semconv.METRICS:
        for series in translated(row.name, row.kind, row.unit):
            found[series] = set(row.attributes)
    namespace = loaded("collector.yaml")["connectors"]["span_metrics"]["namespace"]
    for name, kind, unit in FROM_SPANS:
        for series in translated(f"{namespace}.{name}", kind, unit):
            found[series] = {"inferscope.phase", "inferscope.bound", "gen_ai.request.model"}
    if find_spec("inferscope.sinks.metric_semconv") is not None:
        from inferscope.sinks import metric_semconv  # noqa: PLC0415 - present where requests become metrics

        for row in metric_semconv.REQUEST_METRICS:
            for series in translated(row.name, row.kind, row.unit):
                found[series] = {*row.attributes, *metric_semconv.BASE_KEYS}
    return {series: {key.replace(".", "_") for key in keys} for series, keys in found.items()}


def expressions(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        inner = variable["query"].removeprefix("label_values(").rpartition(",")[0]
        yield variable["name"], inner if "{" in inner else inner + "{}"


def test_the_dashboard_asks_for_series_that_are_sent(dashboard):
    known, pending = known_series(), find_spec("inferscope.sinks.metric_semconv") is None
    asked = set()
    for title, expression in expressions(dashboard):
        assert expression.count("(") == expression.count(")"), title
        found = QUERY.findall(expression)
        assert found, f"{title}: no series in {expression}"
        for series, selector in found:
            asked.add(series)
            if series not in known and pending and series.startswith(("gen_ai_server_", "inferscope_")):
                continue  # of requests: checked where the table of their metrics is
            assert series in known, f"{title}: {series}"
            used = {part.split("=")[0].rstrip("!~") for part in selector.split(",") if part}
            grouped = re.findall(r"by \(([^)]*)\)", expression)
            used |= {name.strip() for names in grouped for name in names.split(",")}
            assert used <= known[series] | FROM_PROMETHEUS, f"{title}: {used - known[series] - FROM_PROMETHEUS}"
    wanted = {"gen_ai_server_time_to_first_token_seconds_bucket", "gen_ai_server_time_per_output_token_seconds_bucket"}
    wanted |= {"inferscope_phase_time_seconds_total", "inferscope_ledger_time_seconds_total"}
    wanted |= {"traces_span_metrics_calls_total", "hw_power_watts", "hw_gpu_utilization_ratio"}
    assert wanted <= asked


def test_the_dashboard_is_laid_out_and_its_sources_are_there(dashboard):
    sources = {source["uid"] for source in loaded("grafana/provisioning/datasources/datasources.yaml")["datasources"]}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    cells = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not mine & cells, panel["title"]
        cells |= mine
        assert {target["datasource"]["uid"] for target in panel.get("targets", ())} <= sources
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = {name for _, text in expressions(dashboard) for name in re.findall(r"\$(\w+)", text)}
    assert used <= variables | {"__rate_interval"}
