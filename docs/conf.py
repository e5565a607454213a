"""The documentation as a site: ``python -m sphinx -W docs site``."""

from __future__ import annotations

import re
import sys
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


def setup(app) -> None:
    app.connect("autodoc-process-docstring", escape, priority=1)  # before napoleon
    app.connect("builder-inited", lambda app: draw(Path(__file__).parent / "program.png"))
