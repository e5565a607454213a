"""Many training steps in a row: on one thread, or by a team of threads.

The run is a sequence of turns, the phases of all steps, and a turn has P parts. Each member of the
team has a part of its own, whose data stay in the caches of its processor. It takes it, turn after
turn, and waits at the end of a turn until all parts are done; who has waited for long takes a part
that nobody has begun. So any number of threads may join, late or never: alone, one does it all.
What is computed depends on the number of parts, not on who computes it. A meeting of the threads
costs a look at a counter, where forking anew for each phase costs a call of the operating system.
"""

from __future__ import annotations

from typing import Any

from nnbackend.kernels.cpu.codegen.compile import compiled
from nnbackend.kernels.cpu.codegen.intrinsics import (
    atomic_add,
    atomic_load,
    atomic_replace,
    let_others_run,
    pause,
    vector_at,
)
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program.batch import begin_step
from nnbackend.kernels.cpu.program.phases import end_step, run_phase

#: Looks at the counter before the thread gives up its time: some 50 us.
PATIENCE = 1000


@compiled
def run_serial(f: Any, part: int, like: Any) -> None:
    """All steps of a run on this thread; ``part`` is 0."""
    for index in range(f[c.N_STEPS]):
        begin_step(f, index, like)
        for phase in range(f[c.N_PHASES]):
            run_phase(f, f[c.FIRST_PHASE] + phase, part, like)
            if f[c.STATUS]:
                return
        end_step(f, index)


@compiled
def reset_team(f: Any) -> None:
    """Before a team starts: nothing is taken, nothing is done."""
    team = vector_at(f[c.TEAM], 0, (f[c.N_PARTS] + 2) * c.TEAM_STRIDE, c.INT64)
    team[:] = 0


@compiled
def place_of(f: Any, index: int) -> int:
    """Address of one of the team's numbers: 0 counts the parts done, 1 + p part p's turns."""
    return f[c.TEAM] + 8 * c.TEAM_STRIDE * (index + 1)


@compiled
def run_as_team(f: Any, member: int, like: Any) -> None:
    """Take part in all steps of a run."""
    parts = f[c.N_PARTS]
    done = place_of(f, 0)
    for turn in range(f[c.N_STEPS] * (f[c.N_PHASES] + 1) + 1):
        take_part(f, turn, member, done, like)
        looks = 0
        while atomic_load(done) < (turn + 1) * parts:
            looks += 1
            if looks < PATIENCE:
                pause()
            else:
                for part in range(parts):
                    take_part(f, turn, part, done, like)
                let_others_run()


@compiled
def take_part(f: Any, turn: int, part: int, done: int, like: Any) -> None:
    """Run a part of a turn, unless somebody else has it."""
    if not atomic_replace(place_of(f, 1 + part), turn, turn + 1):
        return
    turns = f[c.N_PHASES] + 1
    step, phase = turn // turns, turn % turns - 1
    if phase >= 0:
        if f[c.STATUS] == 0:
            run_phase(f, f[c.FIRST_PHASE] + phase, part, like)
    elif part == 0:
        # between two steps: one ends and the next begins
        if step > 0 and f[c.STATUS] == 0:
            end_step(f, step - 1)
        if step < f[c.N_STEPS] and f[c.STATUS] == 0:
            begin_step(f, step, like)
    atomic_add(done, 1)
