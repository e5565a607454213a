"""Training on several processes and machines: the rows of each batch are shared by ranks.

>>> import nnbackend as nn
>>> comm = nn.distributed.init()  # under mpiexec or srun; otherwise the only rank
>>> model = nn.Sequential([nn.Dense(64, 10)], seed=0)
>>> model.compile("softmax_cross_entropy")
>>> x, y = nn.datasets.digits()
>>> history = model.fit(x, y, epochs=2, comm=comm, verbose=0)

See docs/distributed.md. Needs mpi4py and an MPI where there are several ranks:
``pip install "nnbackend[mpi]"``.
"""

from nnbackend.distributed.communicator import Alone, Communicator
from nnbackend.distributed.launch import init, is_launched

__all__ = ["Alone", "Communicator", "init", "is_launched"]


def __dir__() -> list[str]:
    return [*__all__, "__all__", "__doc__"]
