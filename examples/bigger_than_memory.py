"""Train from a file that would not fit: a memory-mapped array is read a piece at a time.

    python examples/bigger_than_memory.py [GIGABYTES]

Allows itself 1 GB of memory, makes a file of 4 GB (or as many as you say) in the current folder,
trains one epoch on it, prints the largest resident memory, and removes the file. Without the limit,
a machine with enough memory would keep the file there, which is faster from the second epoch on.
"""

import os
import resource
import sys

import numpy as np

import nnbackend as nn

GIGABYTES = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0


def largest_resident_memory() -> float:
    """In kilobytes. Linux counts ru_maxrss from before this program was started by another."""
    status = "/proc/self/status"
    if os.path.exists(status):
        with open(status) as lines:
            return float(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


# Only the soft limit, which any program may set for itself: files that are mapped do not count.
resource.setrlimit(resource.RLIMIT_DATA, (10**9, resource.getrlimit(resource.RLIMIT_DATA)[1]))

WIDTH, PATH = 256, "bigger_than_memory.bin"
ROWS = int(GIGABYTES * 1e9 / (4 * WIDTH))

rng = np.random.default_rng(0)
secret = rng.normal(size=(WIDTH, 4)).astype("float32")
labels = np.empty(ROWS, np.int64)
try:
    with open(PATH, "wb") as file:
        for start in range(0, ROWS, 10_000):
            block = rng.standard_normal((min(10_000, ROWS - start), WIDTH), dtype="float32")
            labels[start : start + len(block)] = (block @ secret).argmax(axis=1)
            block.tofile(file)
    x = np.memmap(PATH, "float32", "r", shape=(ROWS, WIDTH))
    model = nn.Sequential([nn.Dense(WIDTH, 64, "relu"), nn.Dense(64, 4)], seed=0)
    model.compile("softmax_cross_entropy", nn.Adam(2e-3), ["accuracy"])
    history = model.fit(x, labels, epochs=1, batch_size=256)
    megabytes = largest_resident_memory() / 1e3
    print(f"{ROWS:,} rows, {x.nbytes / 1e9:.2f} GB, accuracy {history['accuracy'][-1]:.3f}")
    print(f"largest resident memory {megabytes:.0f} MB")
finally:
    if os.path.exists(PATH):
        os.remove(PATH)
