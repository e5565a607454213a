// What lies in the shared memory of a block that does steps in phases: see phases.cu.

// What becomes of parameters.
struct Update {
    Optimizer optimizer;
    int rule, decays;
    Size decayed;  // parameters before this one decay
    Real *w, *g, *m, *v;
    StepState* state;

    __device__ inline bool stopped() const { return *(const volatile Size*)&state->stopped; }
};

// What a step's tasks are told: registers would be kept in memory over calls, and lost from the cache
// where blocks meet.
struct Step {
    Batch batch, ahead;
    Size index;  // in the run
    int number;  // in the launch; batches take turns in two places
    int is_last;
    int loss;    // its code
    Real loss_parameter;
    Size sums;   // columns of the trace behind its three first ones
};
static_assert(sizeof(Update) + sizeof(Step) <= 8 * STEP_WORDS, "room for them");

// Memory of a block: the run, tables, rates, sums of warps, the update, the step, then TILE_BYTES for
// tiles.
__device__ inline Size* run_of_steps() { return (Size*)shared_memory(); }
__device__ inline Size* all_tasks() { return run_of_steps() + RUN_FIELDS; }
__device__ inline Size* all_phases() { return all_tasks() + MOST_TASKS * TASK_FIELDS; }
__device__ inline double* all_rates() { return (double*)(all_phases() + MOST_PHASES); }
__device__ inline double* warp_sums() { return all_rates() + 3 * MOST_STEPS; }
__device__ inline Update* update() { return (Update*)(warp_sums() + WARPS); }
__device__ inline Step* step() { return (Step*)(update() + 1); }
__device__ inline Real* tile_memory() { return (Real*)(warp_sums() + WARPS + STEP_WORDS); }
// The place of two that the step's batch is in.
__device__ inline int turn_of_step() { return step()->number & 1; }

// One row of the table: a task.
struct Task {
    const Size* fields;

    __device__ inline int number(int field) const { return (int)fields[field]; }
    __device__ inline Real* numbers(int field) const { return (Real*)fields[field]; }
    __device__ inline Real parameter() const {
        return (Real)((const double*)fields)[TASK_PARAMETER];
    }
};
