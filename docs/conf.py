"""The documentation as a site: ``python -m sphinx -W docs site``."""

from __future__ import annotations

import inspect
import re
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from program_picture import draw

project = "nnbackend"
author = "the developers of nnbackend"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "nnbackend"
exclude_patterns = ["site"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = True
napoleon_use_ivar = True
# an alias of a type is said by its name
autodoc_type_aliases = {"Array": "Array", "DType": "DType", "HostArray": "HostArray"}


def escape(app, what, name, obj, options, lines) -> None:
    """Docstrings are plain text with ``code``: |w|, a * b and the like mean nothing else."""
    in_attributes = False
    for k, line in enumerate(lines):
        in_attributes = (in_attributes and line.startswith(" ")) or line == "Attributes:"
        if in_attributes:  # several names with one text: words would be taken for a type
            line = re.sub(r"^( +)((?:\w+, )+\w+):", lambda m: m[0].replace(", ", ","), line)
        parts = re.split(r"(``.*?``|:\w+:`.*?`)", line)
        parts[::2] = [re.sub(r"([|*]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
        lines[k] = "".join(parts)


#: Public in Python, for the library's own use.
INTERNAL = {
    "InitializerLike", "MOST", "change_number", "change_trainable", "changes", "check_adapted",
    "check_free", "class_labels", "draw", "exclusive", "figures_text", "forget",
    "function_target", "holds_text", "image_shape", "in_range", "initializer_config",
    "is_built_in", "keep_precision", "loss_name", "metric_name", "new_figure", "numeric",
    "require_matplotlib", "resolve_initializer", "resolve_loss", "resolve_metric",
    "resolve_optimizer", "row_floats", "saved_width", "schedule_from_config", "set_statistics",
    "statistics", "to_probabilities", "to_scores", "transient",
}  # fmt: skip


def skip(app, what, name, obj, is_skipped, options) -> bool | None:
    """Leave out what nobody should call, and what a callback is asked by ``fit`` alone."""
    own = getattr(obj, "__qualname__", "")
    of_fit = name.startswith("on_") or name in ("attach", "state", "set_state")
    return True if name in INTERNAL or (of_fit and not own.startswith("Callback.")) else None


class Words:
    """An annotation as it is written."""

    def __init__(self, parameter: inspect.Parameter) -> None:
        kind = parameter.annotation
        self.text = getattr(kind, "__forward_arg__", kind if isinstance(kind, str) else repr(kind))

    def __repr__(self) -> str:
        return self.text


def signature(app, what, name, obj, options, found, returns) -> tuple[str, str | None] | None:
    """A class takes what its constructor does, and not what every constructor goes through; names
    of types are what they are in the source."""
    if what != "class":
        alias = partial(re.sub, r"TypeAliasForwardRef\('(\w+)'\)", r"\1")
        return found and alias(found), returns and alias(returns)
    if obj.__init__ is object.__init__:
        return "()", None
    takes = inspect.signature(obj)
    plain = [p.replace(annotation=Words(p)) for p in takes.parameters.values()]
    return str(takes.replace(parameters=plain, return_annotation=takes.empty)), None


def setup(app) -> None:
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", escape, priority=1)  # before napoleon
    app.connect("builder-inited", lambda app: draw(Path(__file__).parent / "program.png"))
