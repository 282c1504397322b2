"""Draw the roofline of docs/explanation/roofline.md from the committed results; no number in it is typed by hand.

python benchmarks/roofline.py            rewrites the picture
python benchmarks/roofline.py --check    fails where it is not what the results say
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "verdicts-cpu.json"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "roofline.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 430, 78, 20, 24, 58
LOW_X, HIGH_X, LOW_Y, HIGH_Y = 0.1, 1000.0, 1e8, 1e12
HEAD = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
    'font-family="sans-serif" font-size="12">'
)
NAMES = {"smollm2": "SmolLM2-135M", "tiny_llama": "Llama, 2 layers"}


def across(intensity: float) -> float:
    """Where an intensity lies."""
    share = math.log10(intensity / LOW_X) / math.log10(HIGH_X / LOW_X)
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def down(flops_per_s: float) -> float:
    """Where a rate lies."""
    share = math.log10(flops_per_s / LOW_Y) / math.log10(HIGH_Y / LOW_Y)
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def text(x: float, y: float, words: str, *, anchor: str = "start", turned: bool = False) -> str:
    """Words at a place."""
    turn = f' transform="rotate(-90 {x} {y})"' if turned else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{turn}>{words}</text>'


def grid() -> list[str]:
    """Powers of ten."""
    parts = []
    for power in range(-1, 4):
        x = across(10.0**power)
        parts.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(text(x, HEIGHT - BOTTOM + 18, f"{10.0**power:g}", anchor="middle"))
    for power in range(8, 13):
        y = down(10.0**power)
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#ddd"/>')
        parts.append(text(LEFT - 8, y + 4, f"{10.0 ** (power - 9):g}", anchor="end"))
    parts.append(
        text((LEFT + WIDTH) / 2, HEIGHT - 14, "FLOP per byte (both as the cost model counts)", anchor="middle")
    )
    parts.append(text(18, (TOP + HEIGHT - BOTTOM) / 2, "GFLOP/s", anchor="middle", turned=True))
    return parts


def roof(compute: float, memory: float, colour: str, name: str) -> list[str]:
    """The slope of a bandwidth, and the flat of a peak."""
    ridge = compute / memory
    points = [(LOW_X, memory * LOW_X), (ridge, compute), (HIGH_X, compute)]
    path = " ".join(f"{across(x)},{down(y)}" for x, y in points)
    label = text(across(LOW_X * 1.6), down(memory * LOW_X * 1.6) + 20, f"{name} {memory / 1e9:.0f} GB/s")
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', label]


def rate(phase: dict[str, Any], metric: str) -> float:
    """One number of a verdict's evidence."""
    return float(next(row["value"] for row in phase["evidence"] if row["metric"] == metric))


def phases(results: dict[str, Any]) -> list[str]:
    """Each phase where it was measured."""
    parts = []
    for key, name in NAMES.items():
        for phase in ("prefill", "decode"):
            flops, moved = (rate(results[key][phase], f"achieved_{what}_per_s") for what in ("flops", "bytes"))
            x, y = across(flops / moved), down(flops)
            parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="#c0392b"/>')
            parts.append(text(x + 9, y + 4, f"{name}, {phase}: {results[key][phase]['bound']}"))
    return parts


def drawing() -> str:
    """The picture as the results say."""
    data = json.loads(RESULTS.read_text(encoding="utf-8"))
    device = data["results"]["device"]
    compute = device["compute_flops_per_s"]["float32"]["value"]
    memory, cache = (device[f"{kind}_bytes_per_s"]["value"] for kind in ("copy", "cache"))
    machine = data["machine"]
    title = f"{machine['device']}, {machine['threads']} threads, float32, measured {machine['date']}"
    parts = [
        HEAD,
        f"<title>{title}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        *grid(),
        *roof(compute, cache, "#7f8c8d", "cache"),
        *roof(compute, memory, "#2c3e50", "memory"),
        text(WIDTH - RIGHT, down(compute) - 8, f"matrix products {compute / 1e9:.0f} GFLOP/s", anchor="end"),
        *phases(data["results"]),
        text(LEFT, 15, title),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write or check.

    Returns:
        1 where the picture is not what the results say.
    """
    wanted = drawing()
    if "--check" in sys.argv[1:]:
        same = PICTURE.read_text(encoding="utf-8") == wanted
        if not same:
            print(f"{PICTURE}: not what {RESULTS.name} says: run python benchmarks/roofline.py")
        return 0 if same else 1
    PICTURE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
