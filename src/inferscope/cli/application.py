"""Which commands there are. Needs the extra `cli`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

import inferscope
from inferscope.cli import (
    calibrate,
    compare,
    demo,
    doctor,
    import_ncu,
    import_nsys,
    lint,
    predict,
    report,
    run,
    sweep,
    watch,
)
from inferscope.cli.groups import WORDS, GroupedHelp

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["app"]

_EPILOG = (
    "Each command has examples: inferscope COMMAND --help\n\nExit codes: 0 done, 2 a mistake in what was asked, "
    "3 this machine refuses, 4 a limit is exceeded, 5 cannot be told, 130 Ctrl-C, 1 a defect."
)

app = typer.Typer(
    cls=GroupedHelp,
    help="Says why a language model request took as long as it did. Start with: inferscope demo",
    epilog=_EPILOG,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(name: str, function: Callable[..., object], examples: str, context: dict[str, Any] | None = None) -> None:
    app.command(name, short_help=WORDS[name], epilog=examples, context_settings=context)(function)


_add("demo", demo.demo, demo.EXAMPLES)
_add("doctor", doctor.doctor, doctor.EXAMPLES)
_add("run", run.run, run.EXAMPLES, run.CONTEXT)
_add("watch", watch.watch, watch.EXAMPLES)
_add("calibrate", calibrate.calibrate, calibrate.EXAMPLES)
_add("lint", lint.lint, lint.EXAMPLES)
_add("sweep", sweep.sweep, sweep.EXAMPLES)
_add("report", report.report, report.EXAMPLES)
_add("compare", compare.compare, compare.EXAMPLES)
_add("predict", predict.predict, predict.EXAMPLES)
_add("import-ncu", import_ncu.import_ncu, import_ncu.EXAMPLES)
_add("import-nsys", import_nsys.import_nsys, import_nsys.EXAMPLES)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        typer.echo(f"inferscope {inferscope.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command; their callbacks act."""
