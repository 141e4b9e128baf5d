"""The commands `sightline eval run`, `report`, `compare` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from index.errors import UsageError
from index.selectors.registry import SelectorName
from index.store import Store
from index.tables import normalize_url, store_exists
from model.encoders.encoder import Encoders, load_encoders
from model.profiles.profile import load_profile
from pipeline.cli.options import Json, KeyframeCount, ProfileName, Quiet, StoreUrl, Tau, settings_of
from pipeline.console import interruptible, print_json, print_line, print_note, progress, working
from pipeline.evaluation.benchmarks.registry import BENCHMARKS, benchmark
from pipeline.evaluation.benchmarks.subtitles import SubtitleRule
from pipeline.evaluation.runs.asking import Reading
from pipeline.evaluation.runs.comparison import compare_runs, comparison_text
from pipeline.evaluation.runs.comparison_report import comparison_report
from pipeline.evaluation.runs.export import EXPORTS, ExportFormat, export_run
from pipeline.evaluation.runs.record import AnswerLine, Baseline, Mode, RunFolder
from pipeline.evaluation.runs.report import run_report
from pipeline.evaluation.runs.run import RunPlan, run_benchmark
from pipeline.evaluation.runs.summary import summarize, summary_text
from pipeline.pages import write_page
from pipeline.questions.asker import Asker
from pipeline.service.client import ServiceClient
from pipeline.service.token import read_token
from pipeline.settings import Settings

__all__ = ["compare", "export", "report", "run"]

RunPath = Annotated[Path, typer.Argument(help="Folder of a run.")]
_PICTURES = 24


def run(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help=f"The benchmark: {', '.join(BENCHMARKS)}.")],
    data: Annotated[Path, typer.Option(help="Folder with the data set; docs/evaluation.md describes the layouts.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is there goes on.")],
    store: StoreUrl = None,
    profile: ProfileName = None,
    split: Annotated[str | None, typer.Option(help="The split; default: the first that the benchmark has.")] = None,
    subset: Annotated[str | None, typer.Option(help="Only rows of a group, such as duration=long.")] = None,
    limit: Annotated[int | None, typer.Option(help="Largest number of rows; they are drawn with --seed.")] = None,
    answers: Annotated[
        Mode | None,
        typer.Option(help="Compare options by likelihood, or parse a generated reply; default: likelihood."),
    ] = None,
    subtitles: Annotated[SubtitleRule, typer.Option(help="Subtitles in the prompt.")] = "none",
    baseline: Annotated[Baseline, typer.Option(help="What the model sees instead of the video.")] = "none",
    rotations: Annotated[int, typer.Option(help="Ask with this many cyclic orders of the options.")] = 1,
    reference: Annotated[
        bool,
        typer.Option("--reference", help="Read frames as the published scripts: 600 by linspace; replies generated."),
    ] = False,
    k: KeyframeCount = None,
    tau: Tau = None,
    selector: Annotated[SelectorName | None, typer.Option(help="How keyframes are selected.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of drawn rows and options.")] = 0,
    service: Annotated[str | None, typer.Option("--service", help="URL of a model service that answers.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a benchmark, or go on with a run.

    Videos that the store lacks are ingested. Every answer is a line of OUT/answers.jsonl; the same command goes on
    after the last one. OUT/report.html shows the result.
    """
    if reference and answers == "likelihood":
        raise UsageError("--reference generates replies; leave --answers likelihood out")
    bench = benchmark(name)
    settings = settings_of(context, store=store, profile=profile)
    reading = Reading(
        mode=answers or ("generated" if reference or bench.task != "choice" else "likelihood"),
        baseline=baseline,
        reference=reference,
        subtitles=subtitles,
        k=k,
        tau=tau,
        selector=selector,
    )
    plan = RunPlan(
        benchmark=bench,
        data=data,
        out=out,
        split=split or bench.splits[0],
        reading=reading,
        limit=limit,
        subset=subset,
        rotations=rotations,
        seed=seed,
        limits=settings.decode_limits,
    )
    plan.check()
    if reference and service:
        raise UsageError("--reference runs the models in this process; leave --service out")
    remote = None if reference else service or settings.service
    asker, encoders = _asker(settings, profile, remote)
    with (
        progress(quiet=quiet or as_json) as bar,
        interruptible("what is answered is written; the same command goes on"),
    ):
        task = bar.add_task(bench.title, total=None, detail="")

        def advance(done: int, total: int, line: AnswerLine | None) -> None:
            """Show how many questions are done, and the newest problem."""
            detail = "" if line is None or line.problem is None else f"{line.id}: {line.state}"
            bar.update(task, completed=done, total=total, detail=detail)

        folder = run_benchmark(plan, asker, encoders, advance)
    summary = summarize(folder)
    write_page(out / "report.html", run_report(folder, summary, store=asker.store, pictures=_PICTURES))
    if as_json:
        print_json(summary)
        return
    print_line(summary_text(summary))
    print_note(f"report: {out / 'report.html'}")


class _Encoders:
    """The encoders that videos are ingested with, loaded when they are needed first."""

    def __init__(self, profile: str, device: str | None) -> None:
        self.profile, self.device = profile, device
        self.loaded: Encoders | None = None

    def __call__(self) -> Encoders:
        if self.loaded is None:
            self.loaded = load_encoders(load_profile(self.profile), self.device)
        return self.loaded


def _asker(settings: Settings, profile: str | None, service: str | None) -> tuple[Asker, _Encoders]:
    """The asker of a run, and the encoders for videos that the store lacks; the store is created if there is none.

    With a service, videos are ingested in this process with the encoders of the service's profile. `profile` names the
    file of a profile that is not shipped.
    """
    client = None
    if service is not None:
        client = ServiceClient(service, read_token(settings.service_token_file, settings.service_token))
        if profile is not None and load_profile(profile).name != client.profile.name:
            raise UsageError(f"--profile {profile}: the service runs {client.profile.name}; leave --profile out")
    encoders = _Encoders(settings.profile if client is None else profile or client.profile.name, settings.device)
    if not store_exists(normalize_url(settings.store)):
        Store.create(settings.store, encoders().pair)
    if client is not None:
        return Asker(settings.store, service=client), encoders
    with working(f"loading the models of {settings.profile}"):
        asker = Asker(settings.store, settings.profile, settings.device)
    encoders.loaded = asker.encoders
    return asker, encoders


def report(
    context: typer.Context,
    folder: RunPath,
    html: Annotated[Path | None, typer.Option(help="The HTML file; default: report.html in the folder.")] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="A run to print beside it, such as its blind baseline; repeatable."),
    ] = None,
    wrong: Annotated[
        int, typer.Option(min=0, help="Number of wrong answers that are shown with pictures.")
    ] = _PICTURES,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Write the report of a run: tables beside published figures, plots, and wrong answers with their keyframes.

    A run that has not ended is reported too; what was not asked counts as wrong.
    """
    run_folder = RunFolder(folder)
    summary = summarize(run_folder)
    opened = _pictures_of(settings_of(context, store=store), wanted=wrong)
    others = [summarize(RunFolder(path)) for path in beside or ()]
    page = run_report(run_folder, summary, store=opened, pictures=wrong, beside=others)
    path = write_page(html or folder / "report.html", page)
    if as_json:
        print_json(summary)
    else:
        print_line(summary_text(summary))
    print_note(f"report: {path}")


def compare(
    context: typer.Context,
    first: Annotated[Path, typer.Argument(help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(help="Folder of another run over the same questions.")],
    html: Annotated[
        Path | None, typer.Option(help="Write a page with groups and the questions that only one run answers right.")
    ] = None,
    changed: Annotated[int, typer.Option(min=0, help="Number of these questions that the page shows.")] = _PICTURES,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Compare two runs over the same questions with McNemar's test.

    Both must be of one benchmark and one annotation file; only the questions that both have are compared.
    """
    folders = RunFolder(first), RunFolder(second)
    result = compare_runs(*folders)
    if html is not None:
        opened = _pictures_of(settings_of(context, store=store), wanted=changed)
        write_page(html, comparison_report(*folders, result, store=opened, pictures=changed))
    if as_json:
        print_json(result)
    else:
        print_line(comparison_text(result))
    if html is not None:
        print_note(f"comparison: {html}")


def _pictures_of(settings: Settings, *, wanted: int) -> Store | None:
    """The store that has the pictures of keyframes; None, with a note if pictures are wanted, if there is none."""
    if store_exists(normalize_url(settings.store)):
        return Store.open(settings.store)
    if wanted:
        print_note(f"no pictures: there is no store at {settings.store}; give --store")
    return None


def export(
    folder: RunPath,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    form: Annotated[
        ExportFormat,
        typer.Option("--format", help="lmms-eval: a log for its model from_log; submission: the data set's own."),
    ] = "lmms-eval",
) -> None:
    """Write the answers of a run for another tool.

    lmms-eval replays them and scores them with its own code.
    """
    count = export_run(RunFolder(folder), out, form)
    print_line(f"{count} answers in {out}; {EXPORTS[form]}")
