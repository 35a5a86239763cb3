"""`tokconv answers`: what compressors cost a vision-language model in answers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokconv.cli.options import Commands, add_device, command, place
from tokconv.errors import ConfigError, MissingExtraError, StoreError, SweepError, printable
from tokconv.system.files import local_path, text_lines

if TYPE_CHECKING:
    from tokconv.exports.answers.model import AnsweringModel
    from tokconv.store.reader import TokenStore

EXAMPLES = (
    "tokconv answers runs/vlm/model runs/sweeps/textile-001 --tasks textile:runs/public/textile reading",
    "tokconv answers llava-1.5 my-compressor --tasks captions:photos --prompts prompts.txt --store runs/stores/photos",
)


def add_answers(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands, "answers", "measure what compression costs a vision-language model in answers", *EXAMPLES
    )
    parser.add_argument("model", type=local_path, help="the directory of a vision-language model and its processor")
    parser.add_argument(
        "compressors",
        nargs="*",
        type=local_path,
        help="exported compressors, sweeps with all their champions, or models that were adapted to a compressor",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="NAME[:FOLDER]",
        help="textile:FOLDER, classes:FOLDER (a folder per class), reading[:PHOTOS], captions[:IMAGES] (no answers "
        "needed)",
    )
    parser.add_argument("--prompts", type=local_path, metavar="FILE", help="the prompts of captions, one per line")
    parser.add_argument("--questions", type=int, metavar="N", help="the first N questions of each task (default: all)")
    parser.add_argument(
        "--store", type=place, help="a token store of the model's tower, for the baselines (default: the compressors')"
    )
    parser.add_argument(
        "--baselines", metavar="NAMES", help="with commas between; none for no baseline (default: all of them)"
    )
    parser.add_argument(
        "--grids",
        help="of the baselines (default: those of the compressors, else those of 4,6,8,12 that the model can read)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="questions at once (default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=24, metavar="N", help="tokens of an answer at most (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=local_path,
        help="the folder of the results; what is there already is not computed again (default: the folder answers of "
        "the sweep whose champions these are, else runs/answers)",
    )
    add_device(parser)
    parser.set_defaults(check=_check)


def _check(args: argparse.Namespace) -> None:
    for option, least in (("questions", 1), ("batch_size", 1), ("max_tokens", 1)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise ConfigError(f"--{option.replace('_', '-')}: got {value}; it must be at least {least}")
    names = [text.partition(":")[0] for text in args.tasks]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--tasks: {double} is named twice; run the second with another --out")
    if args.prompts is not None and "captions" not in names:
        raise ConfigError("--prompts: goes with the task captions")


def run(args: argparse.Namespace) -> None:
    """Measure, print tables, write JSON and a plot. Raises TokconvError before any work if an input does not fit."""
    from tokconv.evaluation.baselines.registry import BASELINES
    from tokconv.exports.answers.figures import figures_of
    from tokconv.exports.answers.methods import all_methods, export_of, find_exports
    from tokconv.exports.answers.model import AnsweringModel, check_model
    from tokconv.exports.answers.plot import draw_answers
    from tokconv.exports.answers.run import AnswersRun
    from tokconv.exports.answers.seen import seen_text
    from tokconv.exports.answers.table import PLOT, TEXT, answers_text
    from tokconv.exports.answers.tasks import make_task
    from tokconv.sweep.record.layout import SweepDirectory
    from tokconv.system.devices import resolve_device
    from tokconv.system.files import write_json, write_text
    from tokconv.system.terminal import progress_line

    check_model(args.model)
    names = list(BASELINES) if args.baselines is None else _names(args.baselines)
    for name in names:
        BASELINES[name]
    exports = find_exports(args.compressors)
    sweep = _sweep_of([folder for _, folder in exports])
    of_sweep = None if sweep is None else SweepDirectory(sweep).answers
    out = args.out or of_sweep or Path("runs/answers")
    store = _store(args.store, [export_of(folder) for _, folder in exports]) if set(names) - {"downsampled"} else None
    prompts = [] if args.prompts is None else _prompts(args.prompts)
    tasks = [make_task(text, prompts=prompts).first(args.questions) for text in args.tasks]
    device = resolve_device(args.device)
    model = AnsweringModel(args.model, device)
    own = sorted({_grid(export_of(folder)) for _, folder in exports})
    grids = own if own and args.grids is None else _grids(args.grids, model, needed=bool(names))
    methods = all_methods(model, exports, store, grids, names)
    model.prompt(tasks[0].questions[0].text)
    work = AnswersRun(model, args.model, tasks, out, batch_size=args.batch_size, limit=args.max_tokens)
    with progress_line("answers, tokens read") as line, progress_line("images") as images:
        records = work.run(methods, line, images)
    figures = figures_of(records, tasks)
    write_json(out / "answers.json", figures)
    seen = "" if store is None else seen_text(tasks, store)
    text = "\n\n".join(part for part in (answers_text(figures, tasks), seen) if part)
    write_text(out / TEXT, text)
    print(f"\n{text}\n\nfigures: {printable(out / 'answers.json')}")
    try:
        print(f"plot: {printable(draw_answers(figures, out / PLOT))}")
    except MissingExtraError as error:
        print(f"no plot: {error}")
    if sweep is not None and out == of_sweep:
        _tell_sweep(sweep, exports, figures)


def _sweep_of(folders: Sequence[Path]) -> Path | None:
    """Return the directory of the one sweep that all of these are champions of; None if there is none."""
    found = {folder.resolve().parents[2] for folder in folders if len(folder.resolve().parents) > 3}
    sweep = next(iter(found), None)
    champions = all(folder.resolve().parent.parent.name == "champions" for folder in folders)
    return sweep if len(found) == 1 and champions and sweep and (sweep / "events.jsonl").is_file() else None


def _tell_sweep(sweep: Path, exports: Sequence[tuple[str, Path]], figures: Sequence[Mapping[str, Any]]) -> None:
    """Write the answers to the sweep's record, MLflow and page; one sentence says why if that is not possible."""
    try:
        from tokconv.sweep.report.status import write_report
        from tokconv.sweep.tracking.answers import record_answers

        by_name = {(method["series"], method["grid"]): method for method in figures}
        answered = [(folder, by_name[series, _grid(folder)]) for series, folder in exports]
        print(printable(record_answers(sweep, answered)))
        write_report(str(sweep), storage="runs", out=None)
    except (ImportError, MissingExtraError, SweepError) as error:
        print(f"not in the page and in MLflow: {error}")


def _names(text: str) -> list[str]:
    return [] if text == "none" else [name.strip() for name in text.split(",") if name.strip()]


def _grids(text: str | None, model: AnsweringModel, *, needed: bool) -> list[int]:
    """Return the grids that a text names; for None those of the usual ones that the model can read."""
    from tokconv.models.windows import chosen_grids

    grids = chosen_grids(text, model.token_grid)
    if text is not None:
        return grids
    readable, why = [], ""
    for grid in grids:
        try:
            model.check_grid(grid)
        except ConfigError as error:
            why = str(error)
        else:
            readable.append(grid)
    if needed and not readable:
        raise ConfigError(f"--grids: this model reads none of {', '.join(map(str, grids))}; name others ({why})")
    return readable


def _grid(folder: Path) -> int:
    from tokconv.exports.artefact import read_config

    return int(read_config(folder)["compressor"]["output_grid_size"])


def _store(named: Path | str | None, folders: Sequence[Path]) -> TokenStore:
    from tokconv.exports.artefact import read_config
    from tokconv.exports.evaluate import find_store
    from tokconv.store.remote import open_place

    advice = "name one of the model's tower with --store, or leave the baselines out with --baselines none"
    if named is not None:
        return open_place(named)
    if not folders:
        raise StoreError(f"the baselines are fitted on a token store; {advice}")
    return find_store(folders[0], read_config(folders[0]).get("store_fingerprint"), advice=advice)


def _prompts(path: Path) -> list[str]:
    try:
        found = text_lines(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts: {path} cannot be read ({type(error).__name__}); name a text file") from error
    if not found:
        raise ConfigError(f"--prompts: {path} is empty; write one prompt per line")
    return found
