"""Which commands there are. Needs the extra `cli`."""

from __future__ import annotations

from typing import Annotated

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

__all__ = ["app"]

app = typer.Typer(
    help="Says why a language model request took as long as it did. Start with: inferscope demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", epilog=demo.EXAMPLES)(demo.demo)
app.command("calibrate", epilog=calibrate.EXAMPLES)(calibrate.calibrate)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("predict", epilog=predict.EXAMPLES)(predict.predict)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("lint", epilog=lint.EXAMPLES)(lint.lint)
app.command("run", epilog=run.EXAMPLES, context_settings=run.CONTEXT)(run.run)
app.command("report", epilog=report.EXAMPLES)(report.report)
app.command("sweep", epilog=sweep.EXAMPLES)(sweep.sweep)
app.command("watch", epilog=watch.EXAMPLES)(watch.watch)
app.command("import-ncu", epilog=import_ncu.EXAMPLES)(import_ncu.import_ncu)
app.command("import-nsys", epilog=import_nsys.EXAMPLES)(import_nsys.import_nsys)


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
