"""The command line: one thin function a command. Results go to stdout, progress and messages to stderr.

Exit codes: 0 done, 1 a defect of mixsup, 2 something that the user can mend (one line says what), 130 stopped by the user.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mixsup.errors import DataError, MixsupError

app = typer.Typer(
    name="mixsup",
    help="Semantic segmentation from the labels that you own: image tags, boxes and masks, mixed freely.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Checkpoint(str, Enum):
    """Which weights of a run: those with the best validation score, or the last."""

    best = "best"
    last = "last"


Data = Annotated[
    Path, typer.Argument(help="Folder (VOC, COCO, YOLO, paired folders, images + tags.csv), COCO JSON, or a YAML that joins several.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `mixsup train` wrote.")]
Format = Annotated[str | None, typer.Option("--format", help="voc, coco, yolo, folders, tags or joined, when the layout is ambiguous.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without the images at fault, and say how many.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; - for stdout.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Scales = Annotated[str, typer.Option("--scales", help="Factors of the working size, averaged, e.g. 0.8,1,1.2.")]
Flip = Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")]
Crf = Annotated[bool, typer.Option("--crf", help="Refine the predictions with a dense CRF (as DeepLab-CRF and BoxSup).")]
CrfSettings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the CRF, e.g. w1=3, theta_alpha=80, max_side=1500.")
]
Which = Annotated[Checkpoint, typer.Option("--checkpoint", help="Which weights of the run.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="ADDRESS", help="Make masks on a Dask cluster (tcp://host:8786, or its scheduler file).")
]
Jobs = Annotated[int, typer.Option("--jobs", help="Processes; -1 for all cores.")]


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False, debug: Debug = False
) -> None:
    if version:
        import mixsup

        print(mixsup.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(epilog="Example: mixsup inspect my-data --split train")
def inspect(
    data: Data,
    split: Annotated[
        str | None, typer.Option(help="A split, several as train+val, or a share, 'train[:20%]'; default: everything.")
    ] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Decode all masks and count pixels per class.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Decode every image and mask, as training will, to find broken ones.")] = False,
    filling_rates: Annotated[
        str | None,
        typer.Option("--filling-rates", metavar="SOURCE", help="How full the boxes of each class are, by the masks of this source."),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of that source.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the filling rates (PNG, PDF or SVG).")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of computed masks; default: the user's cache.")] = None,
    jobs: Jobs = -1,
    format: Format = None,
    json_file: JsonFile = None,
) -> None:
    """What labels are there, per class and per image; every problem of labels and headers with file and line (--full: of pixels, too)."""
    from mixsup.data import read_format
    from mixsup.data.check import check
    from mixsup.data.summary import as_json, summarise
    from mixsup.show import show_filling_rates, show_problems, show_summary

    if filling_rates is None and (plot is not None or settings):
        raise MixsupError("--plot and --set belong to --filling-rates; name a source, as in --filling-rates grabcut")
    dataset = read_format(data, split, format)
    if full and dataset.samples:
        try:
            dataset = check(dataset, skip_bad=True)
        except DataError as error:  # nothing is left
            dataset = replace(dataset, samples=[], problems=error.problems)
    summary = summarise(dataset, pixels=pixels)
    problems, rates = list(dataset.problems), None
    if filling_rates is not None:
        from mixsup.masks import build_source
        from mixsup.masks.cache import default_limit, trim
        from mixsup.masks.filling import measure, plot_rates
        from mixsup.masks.store import MaskStore, default_cache
        from mixsup.recipes import parse_settings

        source = build_source(filling_rates, parse_settings(settings or []), "--set")
        store, limit, began = MaskStore((cache or default_cache()) / "masks"), default_limit(), time.time()
        rates, faults = measure(dataset, source, store, jobs=_jobs(jobs))
        problems += faults
        print(trim(store.folder, limit, began), file=sys.stderr)
        if plot is not None:
            plot_rates(rates, plot)
    if json_file is not None:
        more = {} if rates is None else {"filling_rates": rates.to_json()}
        _write_json({**as_json(summary), "problems": [str(problem) for problem in problems], **more}, json_file)
    else:
        show_summary(summary)
        if rates is not None:
            show_filling_rates(rates)
    show_problems(problems)


@app.command(epilog="Example: mixsup masks my-data --source grabcut --out my-masks --split train --score")
def masks(
    data: Data,
    source: Annotated[
        str,
        typer.Option(help="rectangle, grabcut, crf, tight, ucm, mcg, selective-search, geodesic, grabcut-plus, mcg-grabcut, sam or files."),
    ] = "rectangle",
    out: Annotated[Path | None, typer.Option(help="Folder for palette PNGs and masks.json (COCO run-length codes).")] = None,
    split: Annotated[str | None, typer.Option(help="A split; default: everything.")] = None,
    score: Annotated[bool, typer.Option("--score", help="Compare with the true masks.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the source, e.g. iterations=5.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of computed masks; default: the user's cache.")] = None,
    cache_limit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Above it, masks used longest ago are removed; none for no limit. [$MIXSUP_CACHE_LIMIT, 20G]"),
    ] = None,
    jobs: Jobs = -1,
    cluster: Cluster = None,
    format: Format = None,
    skip_bad: SkipBad = False,
    json_file: JsonFile = None,
) -> None:
    """First masks of boxes, as palette PNG and COCO run-length codes for any trainer."""
    from mixsup.data import load_dataset
    from mixsup.masks import build_source
    from mixsup.masks.cache import default_limit, parse_size, trim
    from mixsup.masks.export import export_masks
    from mixsup.masks.store import MaskStore, default_cache
    from mixsup.recipes import parse_settings
    from mixsup.show import show_problems, show_scores

    if out is None and not score and json_file is None:
        raise MixsupError("nothing to do: give --out FOLDER to write masks, or --score to measure them")
    limit, began = default_limit() if cache_limit is None else parse_size(cache_limit), time.time()
    built = build_source(source, parse_settings(settings or []), "--set")
    dataset = load_dataset(data, split, format=format, skip_bad=skip_bad)
    store = MaskStore((cache or default_cache()) / "masks")
    result, problems = export_masks(
        dataset, built, out, store, score=score or json_file is not None, jobs=_jobs(jobs), cluster=cluster, skip_bad=skip_bad
    )
    if result is not None and json_file is not None:
        _write_json(result, json_file)
    if result is not None and json_file != Path("-"):
        show_scores(result)
    if out is not None:
        print(f"{out}", file=sys.stderr)
    print(trim(store.folder, limit, began), file=sys.stderr)
    show_problems([*dataset.problems, *problems])


@app.command(
    epilog="Example: mixsup train my-data --recipe grabcut --labels boxes --network deeplabv3plus+resnet50 --size 512 --out runs/first"
)
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    recipe: Annotated[str, typer.Option(help="A name from `mixsup recipes`, or a YAML file.")] = "grabcut",
    labels: Annotated[str | None, typer.Option(help="Label budget: masks, boxes or tags; masks=70,boxes=350; masks=1:boxes=5.")] = None,
    split: Annotated[str | None, typer.Option(help="Training split; default: train where there is one.")] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Validation split, or none, or a share as 'train[:20%]' (with --split 'train[20%:]'); default: val where there is one."
        ),
    ] = None,
    network: Annotated[str | None, typer.Option(help="Name (deeplab-largefov, deeplabv3plus+tu-mobilenetv2_100) or YAML file.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the training crops in pixels.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step, over all devices.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all; default: the recipe's epochs.")] = None,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    init: Annotated[str | None, typer.Option(metavar="RUN", help="Start from the network of a run.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any value of the recipe, e.g. train.lr=0.01.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run (same command again).")] = False,
    devices: Annotated[int, typer.Option(help="Devices a node.")] = 1,
    nodes: Annotated[int, typer.Option(help="Nodes.")] = 1,
    strategy: Annotated[str, typer.Option(help="auto, ddp or ddp_find_unused_parameters_true.")] = "auto",
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto (bf16-mixed where the device has it), 32-true, bf16-mixed or 16-mixed.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Loader processes a device; default: its share of the cores, at most 8 (CPU: 2).")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of computed masks; default: the user's cache.")] = None,
    cluster: Cluster = None,
    format: Format = None,
    skip_bad: SkipBad = False,
) -> None:
    """Train a network from whatever labels there are; writes the run folder with its report."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from mixsup.engine.train import Options
    from mixsup.engine.train import train as run_training
    from mixsup.recipes import load_recipe
    from mixsup.show import show_run

    resolved = load_recipe(recipe, network=network, settings=settings or [], overrides={"size": size, "batch": batch, "steps": steps})
    options = Options(
        labels=labels, split=split, val=val, format=format, seed=seed, init=init, resume=resume, skip_bad=skip_bad, cache=cache,
        cluster=cluster, accelerator=accelerator, devices=devices, nodes=nodes, strategy=strategy, precision=precision, workers=workers,
    )  # fmt: skip
    rank_zero_only(show_run)(run_training(data, resolved, out, options))


@app.command(epilog="Example: mixsup evaluate runs/first my-data --split val --scales 0.8,1,1.2 --flip --json scores.json")
def evaluate(
    run: RunFolder,
    data: Data,
    split: Annotated[str | None, typer.Option(help="Split to measure on; default: val where there is one.")] = None,
    scales: Scales = "1",
    flip: Flip = False,
    crf: Crf = False,
    settings: CrfSettings = None,
    boundary: Annotated[
        bool, typer.Option("--boundary", help="Also boundary and interior IoU over trimap widths, and boundary IoU.")
    ] = False,
    checkpoint: Which = Checkpoint.best,
    device: Device = "auto",
    format: Format = None,
    skip_bad: SkipBad = False,
    json_file: JsonFile = None,
) -> None:
    """Pixel accuracy, mean accuracy, mean and frequency-weighted IoU, per class."""
    from mixsup.engine.api import evaluate as run_evaluation
    from mixsup.show import show_scores

    result = run_evaluation(
        run,
        data,
        split,
        scales=_numbers(scales),
        flip=flip,
        crf=_crf(crf, settings),
        boundary=boundary,
        checkpoint=checkpoint.value,
        device=device,
        format=format,
        skip_bad=skip_bad,
    )
    if json_file is not None:
        _write_json(result, json_file)
    if json_file != Path("-"):
        show_scores(result)


@app.command(epilog="Example: mixsup predict runs/first photo.jpg holiday/ --out predictions --overlay")
def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    out: Annotated[Path, typer.Option(help="Folder for palette PNGs and predictions.json (COCO run-length codes).")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also <name>.overlay.jpg, the classes drawn over the image.")] = False,
    scales: Scales = "1",
    flip: Flip = False,
    crf: Crf = False,
    settings: CrfSettings = None,
    tile: Annotated[
        int, typer.Option(help="Larger images are predicted in tiles of so many working pixels a side, each with 128 around it.")
    ] = 1024,
    checkpoint: Which = Checkpoint.best,
    device: Device = "auto",
    skip_bad: SkipBad = False,
) -> None:
    """Predict images with a run; needs nothing but the run."""
    from mixsup.engine.api import predict_files

    count = predict_files(
        run,
        images,
        out,
        overlay=overlay,
        scales=_numbers(scales),
        flip=flip,
        crf=_crf(crf, settings),
        tile=tile,
        checkpoint=checkpoint.value,
        device=device,
        skip_bad=skip_bad,
    )
    print(f"{count} images predicted in {out}")


@app.command(epilog="Example: mixsup report runs/first")
def report(
    run: RunFolder,
    data: Annotated[Path | None, typer.Option(help="The data set, where it has moved since training.")] = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Show images, or only scores, curves and confusion.")] = True,
) -> None:
    """Write the run's report again: one HTML page that needs no network."""
    from mixsup.report import write_report
    from mixsup.show import show_rounds

    print(write_report(run, data=data, pictures=pictures))
    show_rounds(run)


@app.command(epilog="Example: mixsup compare runs/* --hours 20 --plot compare.png")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    data: Annotated[
        Path | None, typer.Option(help="Evaluate all runs on this data set now; default: the scores of their own validation.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data; default: val where there is one.")] = None,
    hours: Annotated[float, typer.Option(help="Of further labelling to spend.")] = 10.0,
    base: Annotated[Path | None, typer.Option("--from", metavar="RUN", help="The run to add labels to; default: the best.")] = None,
    tag_seconds: Annotated[float, typer.Option(help="For each class on each image, whatever its kind of label.")] = 1.0,
    box_seconds: Annotated[float, typer.Option(help="For each box (drawn the old way: 35).")] = 7.0,
    mask_seconds: Annotated[float, typer.Option(help="For the mask of each object.")] = 79.0,
    objects: Annotated[float | None, typer.Option(help="Mean number of objects an image; default: counted in the data set.")] = None,
    unlabelled: Annotated[int | None, typer.Option(help="Images left to label; default: those that the run did not use.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw mean IoU against hours (PNG, PDF or SVG).")] = None,
    checkpoint: Which = Checkpoint.best,
    device: Device = "auto",
    format: Format = None,
    json_file: JsonFile = None,
) -> None:
    """Runs side by side, mean IoU against the hours of their labels, and what to label next."""
    from mixsup.files import drawing_format
    from mixsup.report.compare import compare as run_comparison
    from mixsup.report.compare_plot import plot_comparison
    from mixsup.report.labelling import Seconds
    from mixsup.show import show_comparison

    if plot is not None:
        drawing_format(plot)  # before an evaluation that may take long
    found = run_comparison(
        runs, data=data, split=split, hours=hours, base=base, seconds=Seconds(tag_seconds, box_seconds, mask_seconds), objects=objects,
        unlabelled=unlabelled, checkpoint=checkpoint.value, device=device, format=format,
    )  # fmt: skip
    if plot is not None:
        plot_comparison(found, plot)
    if json_file is not None:
        _write_json(found.to_json(), json_file)
    show_comparison(found, table=json_file != Path("-"))


@app.command(epilog="Example: mixsup export runs/first --onnx first.onnx")
def export(
    run: RunFolder,
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="A graph of one image of this size alone, e.g. 512x768; default: any size and number.")
    ] = None,
    checkpoint: Which = Checkpoint.best,
) -> None:
    """Write the network as ONNX, for programs and devices without Python, and check that the file says what the run says."""
    from mixsup.export import export_onnx

    different = export_onnx(run, onnx, checkpoint=checkpoint.value, fixed=_sides(size))
    print(f"{onnx}: {onnx.stat().st_size / 1e6:.1f} MB; its probabilities and the run's differ by {different:.1g} at most")


@app.command(epilog="Example: mixsup recipes rectangles")
def recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe as YAML.")] = None) -> None:
    """List the recipes, or print one as YAML."""
    from mixsup.recipes import load_recipe, recipe_names, recipe_text

    if name is not None:
        print(recipe_text(name), end="")
        return
    for known in recipe_names():
        recipe = load_recipe(known)
        print(f"{known:18} {recipe.about} [{recipe.paper}]")


@app.command(epilog="Example: mixsup demo --out mixsup-demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data set, the three runs and the report.")] = Path("mixsup-demo"),
    steps: Annotated[int | None, typer.Option(help="Steps of each run; default: what fits four minutes on two cores.")] = None,
    seed: Annotated[int, typer.Option(help="Of the scenes and of training.")] = 0,
) -> None:
    """Draw a data set, train on full masks, on rectangles and by BoxSup on the same boxes, and compare."""
    from mixsup.demo.run import run_demo

    run_demo(out, steps=steps, seed=seed)


def _jobs(jobs: int) -> int:
    if jobs == 0:
        raise MixsupError("--jobs 0: give a number of processes, or -1 for all cores")
    return jobs


def _crf(crf: bool, settings: list[str] | None) -> bool | dict[str, Any]:
    if settings and not crf:
        raise MixsupError("--set belongs to --crf here; give --crf, or leave it out")
    if not settings:
        return crf
    from mixsup.recipes import parse_settings

    return parse_settings(settings)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise MixsupError(f"--scales {text!r}: write numbers joined by commas, as in 0.8,1,1.2") from None


def _sides(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise MixsupError(f"--size {text!r}: write height x width in pixels, as in 512x768") from None
    return height, width


def _write_json(data: dict[str, Any], path: Path) -> None:
    if path == Path("-"):
        whole = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print(json.dumps(data, indent=1, ensure_ascii=not whole))
        return
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    from mixsup.files import write_text

    write_text(path, text)


def main() -> None:
    """Runs the command line and turns errors into one line and an exit code."""
    debug = "--debug" in sys.argv
    if debug:  # works before and after the command's name
        sys.argv = [sys.argv[0], *[word for word in sys.argv[1:] if word != "--debug"]]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a table that has lost an accent is better than none
    try:
        code = app(standalone_mode=False)
    except MixsupError as error:
        if debug:
            raise
        sys.exit(_fail(str(error), 2))
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        _read_enough()
    except SystemExit:
        # Typer catches a broken pipe itself, wraps stdout, and calls it a failure; whoever reads (`| head`) has read enough.
        if type(sys.stdout).__name__ != "PacifyFlushWrapper":
            raise
        _read_enough()
    except Exception as error:
        # Typer carries its own copy of click in some releases and uses the installed one in others; usage errors of both can format themselves.
        if hasattr(error, "format_message"):
            context = getattr(error, "ctx", None)
            hint = context.command_path if context is not None else "mixsup"
            sys.exit(_fail(f"{error.format_message()} See `{hint} --help`.", 2))
        if debug:
            raise
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            sys.exit(
                _fail("out of memory; lower --tile, --scales, --size or --batch, whichever the command has, or take another --device", 1)
            )
        from mixsup.named import own_place

        place = own_place(error)
        if place is not None:
            sys.exit(
                _fail(
                    f"{place}: {type(error).__name__}: {' '.join(str(error).split())[:300]}; correct it there (--debug shows the way to it)",
                    2,
                )
            )
        sys.exit(
            _fail(f"internal error, {type(error).__name__}: {' '.join(str(error).split())[:300]}; run again with --debug and report it", 1)
        )
    if code == 130:  # typer itself turns Ctrl-C into this code
        if sys.stderr.isatty():
            print(file=sys.stderr)  # behind the terminal's own ^C
        _fail("stopped; a training run goes on with --resume, masks that were made stay", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _read_enough() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    sys.exit(0)


def _fail(text: str, code: int) -> int:
    for line in text.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code
