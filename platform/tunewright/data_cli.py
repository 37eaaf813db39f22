"""`tunewright data`: look at what a run would train on, and at what became of its rows."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunewright.artifacts import explained, read_json
from tunewright.console import print_json
from tunewright.errors import StoreError

data_app = typer.Typer(
    help="Look at what a run would train on, and at what became of its rows.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="Print data as JSON on stdout.")]
StoreRoot = Annotated[
    Path | None, typer.Option("--store", help="The store's folder. TUNEWRIGHT_STORE, else ~/.tunewright.")
]


@data_app.command("preview")
def data_preview(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file that describes the run.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the file; repeatable."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each source.")] = 3,
    source: Annotated[
        int | None, typer.Option(metavar="N", help="Only the source with this number, from 1.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="No colours: what carries loss stands in ⟦ ⟧.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The first rows of each source as the model will see them, and which tokens carry loss."""
    from tunewright.config import load_run
    from tunewright.line import quiet_libraries
    from tunewright.preview import preview

    run = load_run(config, sets or [])
    with quiet_libraries(Path(os.devnull)):  # some print on stdout, where JSON is expected
        shown = preview(run, run.store_root.absolute(), rows, source)
    if as_json:
        print_json(shown)
    else:
        _print_preview(shown, plain or not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR")))
    raise typer.Exit(1 if any(entry["problem"] for entry in shown) else 0)


@data_app.command("report")
def data_report(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run, a data set (data/ID), or a report.json."),
    ],
    against: Annotated[
        str | None, typer.Option(metavar="RUN", help="Compare with this run or data set instead.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page there.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    store: StoreRoot = None,
    as_json: AsJson = False,
) -> None:
    """Where every row of a data set went, and why; what is trained on; what changed."""
    from tunewright.config import default_store_root

    root = store.expanduser().absolute() if store else default_store_root()
    path = find_report(root, name)
    report = _read(path)
    page: Path | None = path.with_suffix(".html")
    if against is not None:
        from tunewright.data.drift import drift

        other = find_report(root, against)
        report |= {"drift": drift(report, _read(other)), "before": against}
        page = None
    page = _page(report, page, html, open_page)
    if as_json:
        print_json({**report, "page": page and str(page)})
    else:
        from tunewright.report.data_table import data_text

        print(data_text(report, report["drift"]))
        told = str(page) if page else f"write it with: tunewright data report {name} --html FILE"
        print(f"\n  page  {told}")
    if open_page:
        import webbrowser

        assert page is not None
        if not webbrowser.open(page.as_uri()):
            raise StoreError(f"there is no browser to open here; the page is {page}")


def find_report(root: Path, name: str) -> Path:
    """The `report.json` of a run, of a data artifact (`data/ID` or `ID`), or the file of that name.

    Raises:
        StoreError: there is none; names the nearest ones.
    """
    if name.endswith(".json") and Path(name).is_file():
        return Path(name).absolute()
    sets = {path.parent.name: path for path in sorted((root / "artifacts" / "data").glob("*/report.json"))}
    runs = {path.parents[1].name: path for path in sorted((root / "runs").glob("*/data/report.json"))}
    known = {f"data/{key}": path for key, path in sets.items()} | sets | runs
    if name in known:
        return known[name]
    if name in {path.name for path in (root / "runs").glob("*")}:
        raise StoreError(
            f"run {name} has no data report: its data stage has not come to its end; "
            f"run it again to go on: tunewright prepare CONFIG"
        )
    if name in {f"{path.parent.name}/{path.name}" for path in (root / "artifacts").glob("data/*")}:
        raise StoreError(f"{name} has no report: an earlier version of Tunewright made it")
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [*runs, *known][:5]
    raise StoreError(
        f"there is no run or data set {name} in {root}; "
        + (f"the nearest: {', '.join(near)}" if near else "no run has prepared data yet")
    )


def _read(path: Path) -> dict[str, Any]:
    """The report with its `drift` and `before`, which only those of runs have."""
    try:
        report = read_json(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from None
    if not isinstance(report, dict) or "funnel" not in report:
        raise StoreError(f"{path} is not a data report")
    return {"drift": None, "before": None, **report}


def _page(report: dict[str, Any], page: Path | None, html: Path | None, needed: bool) -> Path | None:
    """Where the page is: the one that is there, or a new one if it is asked for or needed."""
    if html is None and (page is None or not page.is_file()):
        page = None
        if needed:
            import tempfile

            html = Path(tempfile.mkdtemp(prefix="tunewright-")) / "report.html"
    if html is None:
        return page
    from tunewright.report.data_page import data_page

    page = html.expanduser().absolute()
    with explained(f"writing {page}"):
        page.write_text(data_page(report, report["drift"], report["before"]), encoding="utf-8")
    return page


def _print_preview(shown: list[dict[str, Any]], plain: bool) -> None:
    from rich.console import Console

    from tunewright.report.token_view import legend, source_view

    console = Console(soft_wrap=plain, no_color=plain, highlight=False, markup=False)
    console.print(legend(plain))
    for entry in shown:
        console.print()
        for block in source_view(entry, plain):
            console.print(block)
