"""Types that many rooms name."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

#: An array in the host's memory.
HostArray = np.ndarray[Any, Any]
#: Arrays by name.
HostArrays = dict[str, HostArray]
PathLike = str | os.PathLike[str]
