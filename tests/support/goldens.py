"""The golden numbers, as they lie in tests/golden."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent.parent / "golden"


@cache
def golden_index() -> dict[str, Any]:
    entries = json.loads((GOLDEN / "index.json").read_text())["entries"]
    return {entry["id"]: entry for entry in entries}


@cache
def golden_arrays(file: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / file) as archive:
        return dict(archive)
