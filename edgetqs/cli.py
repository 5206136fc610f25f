"""The command line: parse, call one function, print. ``main`` returns the exit code."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import edgetqs
from edgetqs.errors import BadInput, CheckFailed, EdgeTqsError, Unsupported
from edgetqs.flash_command import flash_command
from edgetqs.hil_command import hil_command
from edgetqs.output import Output, global_flags, write_file

MODEL = click.argument("model", type=click.Path(path_type=Path), required=False)
CONFIG = click.option("--config", type=click.Path(path_type=Path), help="The edgetqs.toml to use.")
GRANULARITY = click.option(
    "--granularity", type=click.Choice(["layer", "tensor", "gate"]), help="What shares one width. [gate]"
)
TARGET = click.option("--target", metavar="NAME", help="Device, or a path to its .toml; see `edgetqs targets`.")
BUDGET = click.option("--flash-budget", type=click.IntRange(min=1), metavar="BYTES", help="Flash for the whole image.")
BLACK_BOX = click.option(
    "--black-box", is_flag=True, help="MODEL is a .tflite: perturb its constants, run it in LiteRT."
)
REFINE = click.option(
    "--refine/--no-refine", default=None, help="Improve the plan by rolling out quantized candidates, or not. [refine]"
)
ROUNDING = click.option(
    "--rounding", type=click.Choice(["nearest", "trajectory", "learned"]), help="How weights are rounded. [trajectory]"
)
HORIZON = click.option("--horizon", type=click.IntRange(min=1), metavar="STEPS", help="Steps to roll out. [24]")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(edgetqs.__version__, prog_name="edgetqs")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, as_json: bool, quiet: bool, debug: bool) -> None:
    """Put trained recurrent forecasters on microcontrollers."""
    context.obj = Output(as_json, quiet)
    context.call_on_close(context.obj.end_progress)


def _project(output: Output, model: Path | None, config: Path | None, horizon: int | None = None) -> Any:
    from edgetqs.project import load_project

    project = load_project(model, config)
    output.notes(project.notes)
    return project if horizon is None else dataclasses.replace(project, horizon=horizon)


def _target_name(project: Any, target: str | None) -> str:
    name = target or project.target
    if name is None:
        raise BadInput("no target", todo="give one with --target; `edgetqs targets` lists them")
    return name


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where to write. [edgetqs.toml beside the model]")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.pass_obj
def init(output: Output, model: Path, out: Path | None, force: bool) -> None:
    """Write a commented edgetqs.toml for MODEL."""
    from edgetqs.project import CONFIG_NAME, suggest
    from edgetqs.read import read_model

    out = out or model.parent / CONFIG_NAME
    if out.exists() and not force:
        raise BadInput("the file exists", str(out), "replace it with --force, or choose another with --out")
    try:
        forecaster = read_model(model)
    except Unsupported:
        if model.suffix.lower() != ".tflite":
            raise
        from edgetqs.tflite_forecaster import read_black_box

        forecaster = read_black_box(model).forecaster
    text = suggest(forecaster, model)
    write_file(out, text.encode())
    if output.as_json:
        output.json({"written": str(out)})
    else:
        click.echo(f"wrote {out}: correct the units, the scaling and the roles in it")


@cli.command()
@MODEL
@CONFIG
@click.pass_obj
def inspect(output: Output, model: Path | None, config: Path | None) -> None:
    """Show what was recognised in MODEL, and where in it."""
    from edgetqs import show
    from edgetqs.origins import origins

    project = _project(output, model, config)
    forecaster = project.forecaster
    if output.as_json:
        output.json(show.model_table(forecaster, project.horizon, origins(project)))
    else:
        show.model(output.console, forecaster, project.horizon, origins(project))


@cli.command()
@MODEL
@CONFIG
@GRANULARITY
@HORIZON
@BLACK_BOX
@click.pass_obj
def score(
    output: Output,
    model: Path | None,
    config: Path | None,
    granularity: str | None,
    horizon: int | None,
    black_box: bool,
) -> None:
    """Show how sensitive the rollout is to errors in each unit of weights (TQS)."""
    from edgetqs import blackbox, show
    from edgetqs.audit import audit
    from edgetqs.dynamics import dynamics
    from edgetqs.project import read_data
    from edgetqs.tqs import score as compute

    agreement = lyapunov = None
    if black_box:
        project, box, scores = blackbox.scored(model, config, granularity, horizon, output.progress)
        output.notes(project.notes)
    else:
        project = _project(output, model, config, horizon)
        output.progress("scoring")
        scores = compute(project.forecaster, project.horizon, granularity or project.granularity)
        lyapunov = dynamics(project.forecaster, project.horizon)
    if project.data is not None:
        output.progress("auditing with data")
        data = read_data(project.data, project.forecaster)
        agreement = blackbox.audit(box, scores, data) if black_box else audit(project.forecaster, scores, data)
    if output.as_json:
        output.json({**show.score_table(scores, lyapunov), "rank_agreement_with_data": agreement})
        return
    show.score(output.console, scores, lyapunov)
    if agreement is not None:
        click.echo(f"rank agreement with scores on data: {agreement:.3f}")


@cli.command()
@MODEL
@CONFIG
@GRANULARITY
@HORIZON
@TARGET
@BUDGET
@click.option(
    "--weight-budget", type=click.IntRange(min=1), metavar="BYTES", help="Bytes for weights and scales alone."
)
@ROUNDING
@REFINE
@click.option("--out", type=click.Path(path_type=Path), help="Write the plan to this JSON file.")
@BLACK_BOX
@click.option(
    "--apply", "quantized", type=click.Path(path_type=Path), help="With --black-box: quantize into this .tflite."
)
@click.option("--force", is_flag=True, help="Replace the files if they are there.")
@click.pass_obj
def plan(
    output: Output,
    model: Path | None,
    config: Path | None,
    granularity: str | None,
    horizon: int | None,
    target: str | None,
    flash_budget: int | None,
    weight_budget: int | None,
    rounding: str | None,
    refine: bool | None,
    out: Path | None,
    black_box: bool,
    quantized: Path | None,
    force: bool,
) -> None:
    """Choose widths within the flash of a device, as `build` would, or within --weight-budget.

    With --black-box the plan is written as a recipe of ai-edge-quantizer.
    """
    from edgetqs import blackbox, show
    from edgetqs.pipeline import Options, plan_image, plan_weights
    from edgetqs.recipe import apply, plan_recipe
    from edgetqs.target import load_target

    if flash_budget is not None and weight_budget is not None:
        raise BadInput("--flash-budget and --weight-budget exclude each other", todo="give one of them")
    for path, option in ((out, "--out"), (quantized, "--apply")):
        if path is not None and path.exists() and not force:
            raise BadInput("the file exists", str(path), f"replace it with --force, or choose another with {option}")
    if black_box:
        if flash_budget is not None or target is not None or rounding is not None:
            raise BadInput("a black box is planned for no device and no rounding", todo="give --weight-budget alone")
        if refine:
            raise BadInput(
                "--refine rolls out integer models, and a black box has none",
                "plan --black-box",
                "leave out --refine: a black box is planned by scores",
            )
        project, box, scores = blackbox.scored(model, config, granularity, horizon, output.progress)
        output.notes(project.notes)
        recipe = plan_recipe(box, scores, weight_budget)
        if quantized is not None:
            output.progress("quantizing")
            recipe = apply(box, recipe, project.horizon)
            write_file(quantized, recipe.content)
        if out is not None:
            write_file(out, json.dumps(recipe.rules, indent=1).encode() + b"\n")
        if output.as_json:
            output.json(recipe.to_json())
        else:
            show.plan(output.console, recipe.plan)
            click.echo("\n".join(recipe.lines(str(quantized))))
        return
    if quantized is not None:
        raise BadInput("--apply needs --black-box", todo="`edgetqs build` quantizes a Keras model")
    project = _project(output, model, config, horizon)
    name = _target_name(project, target)
    options = Options(flash_budget, granularity, rounding, refine=refine is not False)
    if weight_budget is None:
        chosen = plan_image(project, name, options, output.progress)
    else:
        chosen = plan_weights(project, load_target(name), weight_budget, options, output.progress)
    if out is not None:
        write_file(out, json.dumps(chosen.to_json(), indent=1).encode() + b"\n")
    if output.as_json:
        output.json(chosen.to_json())
    else:
        show.plan(output.console, chosen)


@cli.command()
@MODEL
@CONFIG
@GRANULARITY
@TARGET
@BUDGET
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Use this plan, perhaps edited.")
@ROUNDING
@REFINE
@click.option(
    "--tflite", type=click.Choice(["both", "step", "sequence"]), default="both", help="Signatures of the .tflite file."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the build. [build/MODEL-TARGET]")
@click.option("--force", is_flag=True, help="Replace the folder if it is there.")
@click.pass_obj
def build(
    output: Output,
    model: Path | None,
    config: Path | None,
    granularity: str | None,
    target: str | None,
    flash_budget: int | None,
    plan_file: Path | None,
    rounding: str | None,
    refine: bool | None,
    tflite: str,
    out: Path | None,
    force: bool,
) -> None:
    """Score, plan, quantize, compile and prove firmware for a target."""
    from edgetqs import show
    from edgetqs.pipeline import Options
    from edgetqs.pipeline import build as run
    from edgetqs.verdict import verdict

    project = _project(output, model, config)
    name = _target_name(project, target)
    out = out or Path("build") / f"{project.forecaster.name}-{Path(name).stem}"
    signatures = ("step", "sequence") if tflite == "both" else (tflite,)
    options = Options(flash_budget, granularity, rounding, plan_file, refine is not False, signatures, force)
    figures = run(project, name, out, options, output.progress)
    try:
        if output.as_json:
            output.json(figures)
        else:
            show.report(output.console, figures)
            click.echo(f"built {out}: link.elf, firmware.elf, {figures['tflite']['path']}, src/, build.json")
    finally:  # a reader that went away changes no verdict
        verdict(figures, out)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--timeout", type=click.IntRange(min=1), default=60, metavar="SECONDS", help="Give up after. [60]")
@click.pass_obj
def emulate(output: Output, folder: Path, timeout: int) -> None:
    """Run a build's firmware in its emulator and show what it prints."""
    from edgetqs.pipeline import run_firmware

    run = run_firmware(folder, timeout)
    if output.as_json:
        output.json({"exit_code": run.exit_code, "output": run.uart or run.log})
    else:
        click.echo(run.uart or run.log, nl=False)
    if run.exit_code != 0:
        raise CheckFailed(f"the firmware ended with exit code {run.exit_code}", str(folder), run.log.strip()[-500:])


@cli.command()
@click.pass_obj
def targets(output: Output) -> None:
    """List the devices that edgetqs knows."""
    from edgetqs import show
    from edgetqs.target import list_targets

    every = list_targets()
    if output.as_json:
        output.json({"targets": every})
    else:
        show.targets(output.console, every)


cli.add_command(flash_command)
cli.add_command(hil_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 1 (checked and failed), 2 (bad input) or 3 (a tool is missing)."""
    # One BLAS thread: the matrices are small, and sums come out alike on machines of any size.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack the characters of a curve
    given = list(sys.argv[1:] if arguments is None else arguments)
    given, flags = global_flags(given)
    try:
        cli.main(args=[*flags, *given], prog_name="edgetqs", standalone_mode=False)
    except EdgeTqsError as error:
        if "--debug" in flags:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except (BrokenPipeError, SystemExit):  # click exits with 1 where the reader went away
        return 0
    except OSError as error:
        if "--debug" in flags:
            traceback.print_exc()
        click.echo(f"error: {error.filename or 'output'}: {error.strerror or error}", err=True)
        return 2
    except Exception as error:
        if "--debug" in flags:
            traceback.print_exc()
        click.echo(
            f"error: {type(error).__name__}: {error}\n  this is a defect of edgetqs; --debug shows where it happened",
            err=True,
        )
        return 2
    return 0
