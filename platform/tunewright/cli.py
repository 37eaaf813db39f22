"""The `tunewright` command. Every verb imports what it needs when it runs, so `--help` answers at once.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import getpass
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import tunewright
from tunewright.console import print_json, print_table
from tunewright.data_cli import data_app
from tunewright.errors import ConfigError, StoreError, TunewrightError

app = typer.Typer(
    name="tunewright",
    help="From raw data to a governed endpoint with one command: exact, resumable fine-tuning on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
runs_app = typer.Typer(help="What was run, and how it ended.", no_args_is_help=True)
models_app = typer.Typer(
    help="Registered versions and the aliases that move between them.", no_args_is_help=True
)
app.add_typer(runs_app, name="runs")
app.add_typer(models_app, name="models")
app.add_typer(data_app, name="data")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file that describes the run.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the file; repeatable."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="RAY", help="Dashboard of a running Ray. RAY_ADDRESS, else a local Ray."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print data as JSON on stdout.")]
StoreRoot = Annotated[
    Path | None, typer.Option("--store", help="The store's folder. TUNEWRIGHT_STORE, else ~/.tunewright.")
]


def main() -> None:
    """Run the command line; ends the process with the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except TunewrightError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


@app.command()
def run(config: ConfigFile, sets: Sets = None, address: Address = None, as_json: AsJson = False) -> None:
    """Run the whole line as a Ray job: data, sweep, training, evaluation, registry, endpoint."""
    _line(config, sets, address, as_json, until=None)


@app.command()
def prepare(config: ConfigFile, sets: Sets = None, address: Address = None, as_json: AsJson = False) -> None:
    """Make the base model and the packed shards; stop there."""
    _line(config, sets, address, as_json, until="data")


@app.command()
def sweep(config: ConfigFile, sets: Sets = None, address: Address = None, as_json: AsJson = False) -> None:
    """Go on to the best hyperparameters; stop there."""
    _line(config, sets, address, as_json, until="sweep")


@app.command()
def plan(
    config: ConfigFile,
    sets: Sets = None,
    device: Annotated[
        str | None, typer.Option(help="The kind of GPU: h100, a100-80gb... Else what this machine has.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of one device for an hour.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each source to look at.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """What training will need, before it is paid for: memory, steps, time and cost."""
    from tunewright.config import load_run
    from tunewright.line import quiet_libraries
    from tunewright.plan import Ask, plan_run
    from tunewright.report.plan_text import plan_lines

    described = load_run(config, sets or [])
    with quiet_libraries(Path(os.devnull)):
        planned = plan_run(described, described.store_root.absolute(), Ask(device, price, rows))
    if as_json:
        print_json(planned)
    else:
        print("\n".join(line for each in planned for line in plan_lines(each)))
    raise typer.Exit(0 if all(each["fits"] for each in planned) else 1)


@app.command()
def train(config: ConfigFile, sets: Sets = None, address: Address = None, as_json: AsJson = False) -> None:
    """Go on to the trained model; stop there."""
    _line(config, sets, address, as_json, until="train")


@app.command()
def evaluate(config: ConfigFile, sets: Sets = None, address: Address = None, as_json: AsJson = False) -> None:
    """Go on to the scores of base and tuned model; stop there."""
    _line(config, sets, address, as_json, until="evaluate")


@app.command()
def register(config: ConfigFile, sets: Sets = None, address: Address = None, as_json: AsJson = False) -> None:
    """Go on to the registered version and its alias; stop there."""
    _line(config, sets, address, as_json, until="register")


@app.command()
def deploy(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Takes its `serve:` and its model.")
    ] = None,
    sets: Sets = None,
    model: Annotated[
        str | None, typer.Option(help="MODEL@ALIAS or MODEL@vN instead of the configured one.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="A running Ray. Else a local one.")
    ] = None,
    store: StoreRoot = None,
    as_json: AsJson = False,
) -> None:
    """Serve a registered model until Ctrl-C; prints the URL, the key and a request to copy."""
    from tunewright.endpoint import keep_up

    keep_up(config, sets or [], model, address, store, as_json)


@app.command()
def chat(
    message: Annotated[
        str | None, typer.Argument(help="Ask this and end; a conversation when left out.")
    ] = None,
    url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str | None, typer.Option(help="One of the endpoint's models; its first if left out.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message for the conversation.")] = None,
    key: Annotated[
        str | None,
        typer.Option(envvar="TUNEWRIGHT_API_KEY", help="API key. The one in the store when left out."),
    ] = None,
    store: StoreRoot = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="At most so many tokens an answer.")] = None,
) -> None:
    """Talk to a running endpoint; answers stream as they are made."""
    from tunewright.chat_client import converse

    raise typer.Exit(converse(message, url, model, system, key, _root(store), max_tokens))


@app.command("export")
def export_model(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="MODEL@vN or MODEL@ALIAS; MODEL alone is its prod, or its newest."
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder to write: a new one, or an empty one.")
    ],
    merge: Annotated[
        bool,
        typer.Option("--merge", help="One plain model instead of the adapter, proved to answer as both."),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="fp32|bf16|fp16", help="Of the merged model. The base's if left out."),
    ] = None,
    store: StoreRoot = None,
    as_json: AsJson = False,
) -> None:
    """Write a version as a PEFT folder, or with --merge as a Hugging Face model, for use elsewhere."""
    from tunewright.export import export_version, precision_named

    made = export_version(
        _registry(store).store, ref, out.expanduser().absolute(), merge, precision_named(dtype)
    )
    if as_json:
        print_json({"version": made.name, "folder": str(made.folder), "equivalence": made.equivalence})
    else:
        print(made.told())


@runs_app.command("ls")
def runs_ls(store: StoreRoot = None, as_json: AsJson = False) -> None:
    """Runs of the store, newest first."""
    from tunewright.runs import list_runs

    found = list_runs(_root(store))
    if as_json:
        print_json(found)
    else:
        print_table(found, f"no runs in {_root(store)}; start one with: tunewright run CONFIG")


@runs_app.command("show")
def runs_show(name: str, store: StoreRoot = None, as_json: AsJson = False) -> None:
    """A run's summary: stages, scores, winner, version, and where everything lies."""
    from tunewright.runs import read_summary

    summary = read_summary(_root(store), name)
    if as_json:
        print_json(summary)
        return
    from tunewright.report import summary_table

    print(summary_table(summary))


@models_app.command("ls")
def models_ls(store: StoreRoot = None, as_json: AsJson = False) -> None:
    """Registered versions, and the aliases that stand at them."""
    from tunewright.runs import list_versions

    found = list_versions(_registry(store))
    if as_json:
        print_json(found)
    else:
        print_table(found, f"no models in {_root(store)}; make one with: tunewright run CONFIG")


@models_app.command("show")
def models_show(
    ref: Annotated[str, typer.Argument(metavar="REF", help="MODEL@vN, MODEL@ALIAS or ALIAS.")],
    store: StoreRoot = None,
    as_json: AsJson = False,
) -> None:
    """A version: what it was made from, and its figures."""
    from dataclasses import asdict

    registry = _registry(store)
    version = registry.resolve(ref)
    shown = {"name": version.name, **asdict(version), "lineage": registry.lineage(version)}
    if as_json:
        print_json(shown)
        return
    facts = shown.pop("facts")
    rows = [{"what": k, "value": v if isinstance(v, str | int) else ", ".join(v)} for k, v in shown.items()]
    rows += [{"what": f"{part}.{k}", "value": v} for part, of in facts.items() for k, v in _scalars(of)]
    print_table(rows, "")


@models_app.command("promote")
def models_promote(
    ref: Annotated[str, typer.Argument(metavar="REF", help="MODEL@vN or MODEL@ALIAS.")],
    alias: Annotated[str, typer.Argument(help="The alias to move.")] = "prod",
    reason: Annotated[str, typer.Option(help="Why; kept in the alias's history.")] = "promoted by hand",
    force: Annotated[bool, typer.Option(help="Even if a gate was missed.")] = False,
    store: StoreRoot = None,
    as_json: AsJson = False,
) -> None:
    """Move an alias to a version; refused when the version missed a gate."""
    registry = _registry(store)
    version = registry.resolve(ref)
    registry.promote(version.model, alias, version.number, by=getpass.getuser(), reason=reason, force=force)
    _moved(version.model, alias, version.name, as_json)


@models_app.command("rollback")
def models_rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    alias: Annotated[str, typer.Argument(help="The alias to move back.")] = "prod",
    store: StoreRoot = None,
    as_json: AsJson = False,
) -> None:
    """Move an alias back to the version it stood at before."""
    version = _registry(store).rollback(model, alias, by=getpass.getuser())
    _moved(model, alias, version.name, as_json)


@app.command()
def doctor(store: StoreRoot = None, as_json: AsJson = False) -> None:
    """Check this machine and say what to do about what is wrong; exit code 1 if a run would fail."""
    from dataclasses import asdict

    from tunewright.doctor import examine

    checks = examine(_root(store))
    rows = [asdict(check) for check in checks]
    if as_json:
        print_json(rows)
    else:
        print_table(
            [{"check": r["name"], "": r["state"], "found": r["found"], "do": r["do"]} for r in rows], ""
        )
    raise typer.Exit(1 if any(check.state == "fail" for check in checks) else 0)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print Tunewright's version."""
    if as_json:
        print_json({"version": tunewright.__version__})
    else:
        print(tunewright.__version__)


def _line(
    config: Path, sets: list[str] | None, address: str | None, as_json: bool, until: str | None
) -> None:
    from tunewright.submit import run_line

    raise typer.Exit(run_line(config, sets or [], address, until, as_json))


def _root(store: Path | None) -> Path:
    from tunewright.config import default_store_root

    return store.expanduser().absolute() if store else default_store_root()


def _registry(store: Path | None) -> Any:
    """The registry of a store that is there: looking does not make one."""
    from tunewright.artifacts import Store
    from tunewright.registry import Registry

    root = _root(store)
    if not root.is_dir():
        raise StoreError(
            f"there is no store at {root}; give --store FOLDER, or make one: tunewright run CONFIG"
        )
    return Registry(Store(root))


def _scalars(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in facts.items() if isinstance(value, str | int | float)]


def _moved(model: str, alias: str, name: str, as_json: bool) -> None:
    if as_json:
        print_json({"model": model, "alias": alias, "version": name})
    else:
        print(f"{model}@{alias} is now {name}. A running endpoint goes on with its version until redeployed.")


def _interrupt(*_: object) -> None:
    """`kill PID` ends as Ctrl-C does: jobs are stopped, nothing is left running."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
