"""The command line: a verb a file. Each parses, calls one function and prints; nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys

import typer

from openclaw_opt.cli import (
    build,
    check,
    compare,
    doctor,
    explain,
    history,
    init,
    inspect,
    listing,
    measure,
    profile,
    report,
    schema,
    sweep,
    verify,
)

app = typer.Typer(
    name="openclaw-opt",
    help="A compiler for models: a recipe turns a checkpoint into a verified engine and a report.",
    epilog="Exit codes: 0 built, within budget · 2 recipe or usage · 3 this machine cannot · 4 a budget was missed · "
    "5 a verification failed · 1 a bug · 130 interrupted, run again to go on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("build")(build.build)
app.command("sweep")(sweep.sweep)
app.command("check")(check.check)
app.command("list")(listing.list_)
app.command("init")(init.init)
app.command("report")(report.report)
app.command("explain")(explain.explain)
app.command("measure")(measure.measure)
app.command("profile")(profile.profile)
app.command("history")(history.history)
app.command("compare")(compare.compare)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("schema")(schema.schema)
app.command("doctor")(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        from openclaw_opt import __version__

        typer.echo(f"openclaw-opt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """A compiler for models: a recipe turns a checkpoint into a verified engine and a report."""


def main() -> None:
    """Run a verb. An OptError is a message and its exit code; anything else is a bug and keeps its traceback."""
    from openclaw_opt.errors import OptError
    from openclaw_opt.interrupts import Interrupted, install

    install()
    try:
        app()
    except OptError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Interrupted as end:
        typer.echo(f"interrupted by {end}; whole passes are kept, run the same command to go on", err=True)
        sys.exit(end.exit_code)
