"""The command that writes a model for other programs: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import nnbackend as nn
from nnbackend.cli.common import app, check_targets, user_errors
from nnbackend.cli.models import ModelFile
from nnbackend.cli.trained import load_trained, preparation_of
from nnbackend.export import lacking, outputs_of, require_onnx


@app.command()
def export(
    model: ModelFile,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="the ONNX file to write")],
    dtype: Annotated[
        str | None,
        typer.Option(help="of the numbers: float32 or float64", show_default="the model's"),
    ] = None,
) -> None:
    """Write a model as an ONNX file, for ONNX Runtime and what else reads such files.

    The graph takes x (rows, inputs) and gives y, the outputs; of classes, also probabilities.

    [bold]Example[/bold]

      nnbackend export digits.safetensors digits.onnx
    """
    with user_errors():
        require_onnx()
        check_targets(out, inputs=(model,))
        trained = load_trained(model, "numpy")
        nn.export_onnx(trained, out, dtype)
        outputs = [f"{name} (rows, {trained.n_outputs})" for name in outputs_of(trained)]
        typer.echo(f"{out}: x (rows, {trained.n_inputs}) -> {', '.join(outputs)}")
        missing = lacking(trained, trained.dtype if dtype is None else np.dtype(dtype))
        if missing:
            typer.echo(f"ONNX Runtime has no float64 for {', '.join(missing)}; see --dtype float32")
        if trained.info.get("image_shape") is not None and trained.info.get("kind") != "builtin":
            typer.echo("x is pixels from 0 to 1: divide those of 0 to 255 by 255")
        plan = preparation_of(trained)
        prepared = [] if plan is None else [c for c in plan.used if not c.is_plain]
        if prepared:
            typer.echo("The file leaves it to you to prepare these columns as for training:")
            for column in prepared:
                typer.echo(f"  {column.name}: {column.description}")
        if plan is not None and plan.target_offset:
            typer.echo(f"y is the prediction's distance from {plan.target_offset:.15g}")
