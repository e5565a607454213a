"""Many training steps in a row: on one thread, or by a team of threads.

A team takes tickets. Ticket number t is part t % P of phase t // P of the run, P parts a phase; who
holds it waits until all parts of earlier phases are done, and then runs that part. So any number
of threads may join, late or never, and none is waited for but for work that it has taken: with no
other thread at hand, one does it all. What is computed depends on the number of parts, not on who
computes it. A meeting of the threads costs a look at a counter, where forking anew for each phase
costs a call of the operating system.
"""

from __future__ import annotations

from typing import Any

from nnbackend.kernels import cpu_context as c
from nnbackend.kernels.cpu_compile import compiled
from nnbackend.kernels.cpu_intrinsics import (
    atomic_add,
    atomic_load,
    let_others_run,
    pause,
    vector_at,
)
from nnbackend.kernels.cpu_program import begin_step, end_step, run_phase

#: Looks at the counter before the thread gives up its time: some 50 us.
PATIENCE = 1000


@compiled
def run_serial(f: Any, part: int, like: Any) -> None:
    """All steps of a run on this thread; ``part`` is 0."""
    for index in range(f[c.N_STEPS]):
        begin_step(f, index, like)
        for phase in range(f[c.N_PHASES]):
            run_phase(f, phase, part, like)
            if f[c.STATUS]:
                return
        end_step(f, index)


@compiled
def reset_team(f: Any) -> None:
    """Before a team starts: no ticket is taken, nothing is done."""
    team = vector_at(f[c.TEAM], 0, c.N_TEAM, c.INT64)
    team[c.TICKETS] = 0
    team[c.DONE] = 0


@compiled
def wait_until(address: int, count: int) -> None:
    """Wait until the counter at ``address`` is at least ``count``."""
    looks = 0
    while atomic_load(address) < count:
        looks += 1
        if looks < PATIENCE:
            pause()
        else:
            let_others_run()


@compiled
def run_as_team(f: Any, like: Any) -> None:
    """Take part in all steps of a run until no ticket is left."""
    parts, steps, turns = f[c.N_PARTS], f[c.N_STEPS], f[c.N_PHASES] + 1
    tickets, done = f[c.TEAM] + 8 * c.TICKETS, f[c.TEAM] + 8 * c.DONE
    while True:
        ticket = atomic_add(tickets, 1)
        turn, part = ticket // parts, ticket % parts
        if turn > steps * turns:
            return
        wait_until(done, turn * parts)
        step, phase = turn // turns, turn % turns - 1
        if phase >= 0:
            if f[c.STATUS] == 0:
                run_phase(f, phase, part, like)
        elif part == 0:
            # between two steps: one ends and the next begins
            if step > 0 and f[c.STATUS] == 0:
                end_step(f, step - 1)
            if step < steps:
                begin_step(f, step, like)
        atomic_add(done, 1)
