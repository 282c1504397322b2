"""Where results go: OpenTelemetry spans, JSONL records, structlog events."""
