// Training steps of a network that the whole GPU works on: many of them in one launch.
//
// A step consists of phases, between which all blocks meet, about a microsecond; a graph takes more
// than that between two kernels, and more again for each small product. A phase consists of tasks,
// such as the tiles of a product, each a number of units that the blocks share. Tasks are rows of a
// table which nnbackend/backends/cuda/phased.py writes, so that one program serves all networks.
//
// What layers read ends with a column of ones: so the gradient of a bias is a row of the product that
// is the weights' gradient.

// Tiles of single precision may be deeper, and a thread's part of the larger ones larger.
#define WIDE_REAL ((int)sizeof(Real) / 4)
#define IN_TILES(DO)                                                                              \
    switch (task.number(TASK_TILE)) {                                                             \
        case TILE_16_8: DO(16, 8, 128 / WIDE_REAL, 4, 4); break;                                  \
        case TILE_16_16: DO(16, 16, 128 / WIDE_REAL, 4, 4); break;                                \
        case TILE_32_32: DO(32, 32, 128 / WIDE_REAL, 8 / WIDE_REAL, 4); break;                    \
        default: DO(64, 64, 64 / WIDE_REAL, 8 / WIDE_REAL, 8 / WIDE_REAL);                        \
    }

// A unit of a task.
__device__ inline void do_unit(Task task, int unit) {
    switch (task.number(TASK_KIND)) {
#define FORWARD_TILE(...) do_tile<DO_FORWARD, __VA_ARGS__>(task, unit)
        case DO_FORWARD: IN_TILES(FORWARD_TILE); break;
#define BELOW_TILE(...) do_tile<DO_BELOW, __VA_ARGS__>(task, unit)
        case DO_BELOW: IN_TILES(BELOW_TILE); break;
#define WEIGHTS_TILE(...) do_weights<__VA_ARGS__>(task, unit)
        case DO_WEIGHTS: IN_TILES(WEIGHTS_TILE); break;
#define OUTPUTS_TILE(...) do_outputs<__VA_ARGS__>(task, unit)
        case DO_OUTPUTS: IN_TILES(OUTPUTS_TILE); break;
        case DO_LOSS: do_losses(task, unit); break;
        case DO_FINISH: finish_loss(task); break;
        case DO_FETCH: fetch_rows(task, unit); break;
        case DO_ALIGN: align_some(task, unit); break;
        default: update_some(task, unit);
    }
}

// The blocks' shares of the tasks of a phase.
__device__ inline void do_phase(int phase) {
    int unit = blockIdx.x;
    const int end = (int)all_phases()[phase + 1];
    for (int number = (int)all_phases()[phase]; number < end; number++) {
        const Task task = {all_tasks() + number * TASK_FIELDS};
        const int units = task.number(TASK_UNITS);
        for (; unit < units; unit += gridDim.x) do_unit(task, unit);
        unit -= units;
    }
}

#undef KERNEL
#define KERNEL extern "C" __global__ void

// ``steps`` steps of the run, at most MOST_STEPS. ``tasks`` is the table, ``phases`` the number of the
// first task of each phase, of what is done before the first step, and of all. ``arrived`` are two
// counts of blocks that take turns, one for each launch, both 0 before the first. ``n`` is the width of
// the trace behind its three first columns.
KERNEL train_in_phases(
    int steps, int turn, const Size* tasks, const Size* phases, int n_phases, int loss,
    Real loss_parameter, Size n, int rule, int nesterov, double momentum, double beta1, double beta2,
    double rho, double eps, double decay, double eps_hat, Real* parameters, Real* gradients, Real* m,
    Real* v, Size decayed, Word* arrived, Size* run, StepState* state
) {
    if (blockIdx.x == 0 && threadIdx.x == 0) arrived[1 - turn] = 0;
    for (int i = threadIdx.x; i < RUN_FIELDS; i += THREADS) run_of_steps()[i] = run[i];
    for (int i = threadIdx.x; i < n_phases + 2; i += THREADS) all_phases()[i] = phases[i];
    const int n_tasks = (int)phases[n_phases + 1];
    for (int i = threadIdx.x; i < n_tasks * TASK_FIELDS; i += THREADS) all_tasks()[i] = tasks[i];
    __syncthreads();
    const Size index = run_of_steps()[RUN_INDEX];
    correct_rates(
        run_of_steps(), index, steps, rule == UPDATE_ADAM, beta1, beta2, eps, decay, eps_hat,
        all_rates()
    );
    if (threadIdx.x == 0) {
        *update() = {
            {nesterov, (Real)momentum, (Real)beta1, (Real)(1 - beta1), (Real)beta2,
             (Real)(1 - beta2), (Real)rho, (Real)(1 - rho), (Real)eps},
            rule, decay != 0, decayed, parameters, gradients, m, v, state
        };
        // before the first step there is nothing but the batch ahead, which comes to place 0
        *step() = {{}, next_batch(run_of_steps()), index, 1, 0, loss, loss_parameter, n};
    }
    __syncthreads();
    do_phase(n_phases);
    Word meetings = gridDim.x;
    meet_grid(arrived + turn, meetings);
    for (int i = 0; i < steps; i++) {
        if (threadIdx.x == 0) {
            Step& now = *step();
            now.batch = now.ahead;
            now.ahead.move_on(run_of_steps());
            now.index = index + i;
            now.number = i;
            now.is_last = i + 1 == steps;
        }
        __syncthreads();
        for (int phase = 0; phase < n_phases; phase++) {
            do_phase(phase);
            if (i + 1 == steps && phase + 1 == n_phases) break;
            meetings += gridDim.x;
            meet_grid(arrived + turn, meetings);
        }
    }
    if (blockIdx.x || threadIdx.x) return;
    run[RUN_INDEX] = index + steps;
}
