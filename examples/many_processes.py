"""One script for one process, several on this machine, or many machines.

    python examples/many_processes.py
    mpiexec -n 2 python examples/many_processes.py
    srun --ntasks 64 python examples/many_processes.py

The processes ("ranks") share the rows of each batch; the curves are the same for any number of
them. Needs mpi4py and an MPI where there are several: pip install "nnbackend[mpi]".
"""

import nnbackend as nn

comm = nn.distributed.init()
x, y = nn.datasets.digits()

model = nn.Sequential([nn.Dense(64, 128, "relu"), nn.Dropout(0.2), nn.Dense(128, 10)], seed=0)
model.compile("softmax_cross_entropy", nn.Adam(2e-3), ["accuracy"])
history = model.fit(x, y, epochs=10, batch_size=64, validation_split=0.2, comm=comm)
figures = model.evaluate(x, y, comm=comm)

if comm.rank == 0:  # one of them prints, and writes files
    print(f"accuracy {figures['accuracy']:.3f} on all rows, by {comm.size} process(es)")
    model.save("digits.safetensors")
