"""Spans in a file that Jaeger's page takes by drag and drop: OTLP in its JSON encoding, no network needed."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from inferscope.drafts import draft
from inferscope.errors import CacheUnwritableError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["OtlpFileExporter"]

_IDS = ("traceId", "spanId", "parentSpanId")


class OtlpFileExporter(SpanExporter):
    """Keeps the latest spans and writes them as one OTLP/JSON document at each flush and at the end.

    The file is replaced as a whole, so a reader never sees half of it.

    Attributes:
        dropped: Spans that made room for later ones.
    """

    def __init__(self, path: Path, *, max_spans: int = 10_000) -> None:
        """Prepare to write.

        Args:
            path: The file; what it held is replaced at the first flush.
            max_spans: Spans kept, oldest out.

        Raises:
            CacheUnwritableError: There is no such folder, or it cannot be written to.
            MissingExtraError: The OTLP encoder is not installed.
        """
        _check_encoder()
        folder = path.absolute().parent
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise CacheUnwritableError(f"{path}: cannot be written; give a file in a folder that exists")
        self.dropped = 0
        self._path = path
        self._spans: deque[ReadableSpan] = deque(maxlen=max_spans)
        self._lock = threading.Lock()
        self._unwritten = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Keep spans for the next flush."""
        with self._lock:
            overflow = len(self._spans) + len(spans) - (self._spans.maxlen or 0)
            self.dropped += max(overflow, 0)
            self._spans.extend(spans)
            self._unwritten = True
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Write what has come since the last flush.

        Raises:
            OSError: The file could not be written.
        """
        with self._lock:
            if self._unwritten:
                self._write()
                self._unwritten = False
        return True

    def shutdown(self) -> None:
        """Write what has come since the last flush.

        Raises:
            OSError: The file could not be written.
        """
        self.force_flush()

    def _write(self) -> None:
        document = json.dumps(_document(list(self._spans)), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        with draft(self._path) as unfinished:
            unfinished.write_text(document + "\n", encoding="utf-8")


def _check_encoder() -> None:
    try:
        import google.protobuf.json_format  # noqa: F401, PLC0415 - an extra
        import opentelemetry.exporter.otlp.proto.common.trace_encoder  # noqa: F401, PLC0415 - the same
    except ImportError as error:
        raise MissingExtraError(
            "writing OTLP files needs the OTLP exporters: install inferscope with its extra [otlp]"
        ) from error


def _document(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """The spans as the JSON encoding of an ExportTraceServiceRequest."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - an extra, needed only here
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans  # noqa: PLC0415 - the same

    document: dict[str, Any] = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for resource in document.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                _write_ids_in_hex(span)
                for link in span.get("links", ()):
                    _write_ids_in_hex(link)
    return document


def _write_ids_in_hex(holder: dict[str, Any]) -> None:
    # OTLP writes ids in hexadecimal, everything else of type bytes in base64 as protobuf does.
    for key in _IDS:
        if key in holder:
            holder[key] = base64.b64decode(holder[key]).hex()
