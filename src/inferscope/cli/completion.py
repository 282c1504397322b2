"""What the shell offers for the values of options."""

from __future__ import annotations

__all__ = ["dtypes", "formats", "gpus"]


def gpus(incomplete: str) -> list[str]:
    """GPUs of the catalogue."""
    from inferscope.hardware.catalog import catalog  # noqa: PLC0415 - for the shell alone

    return [name for name in catalog() if name.lower().startswith(incomplete.lower())]


def dtypes(incomplete: str) -> list[str]:
    """Types that weights can be loaded as."""
    return [name for name in ("float32", "bfloat16", "float16") if name.startswith(incomplete)]


def formats(incomplete: str) -> list[str]:
    """Forms of a report."""
    return [name for name in ("html", "md", "json", "perfetto") if name.startswith(incomplete)]
