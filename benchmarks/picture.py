"""Draw the README's picture: the demo, run for real, as an SVG.

python benchmarks/picture.py
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from rich.console import Console

from inferscope.experiments.demo import DemoOptions, run_demo

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "demo.svg"


def main() -> None:
    """Run the demo on a recording console of 100 columns."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        run_demo(DemoOptions(out=Path(folder)), console=console, status=Console(stderr=True))
        drawing = console.export_svg(title="inferscope demo").replace(folder, "inferscope-out")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main()
