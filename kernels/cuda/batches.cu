// The batches of a run, for kernels that do many steps.

// A batch of the run: its place in the epoch, where its rows begin among the rows of an epoch, or of
// the order of rows, and how many they are.
struct Batch {
    int place, per_epoch, rows;
    Size start, epoch;

    __device__ inline void settle(const Size* run) {
        const int batch = (int)run[RUN_BATCH];
        const Size left = run[RUN_ROWS] - place * (Size)batch;
        start = place * (Size)batch + (run[RUN_ORDER] ? epoch * run[RUN_ROWS] : 0);
        rows = left < batch ? (int)left : batch;
    }
    __device__ inline void move_on(const Size* run) {
        if (++place == per_epoch) {
            place = 0;
            epoch++;
        }
        settle(run);
    }
};

// That of the run's next step.
__device__ inline Batch next_batch(const Size* run) {
    const Size batch = run[RUN_BATCH], index = run[RUN_INDEX];
    const Size per_epoch = (run[RUN_ROWS] + batch - 1) / batch;
    Batch found;
    found.per_epoch = (int)per_epoch;
    found.epoch = index / per_epoch;
    found.place = (int)(index - found.epoch * per_epoch);
    found.settle(run);
    return found;
}

// What the updates of a launch read, three numbers for each: rate and eps, Adam's with its bias
// corrections, and what a decay leaves. ``index`` is that of the launch's first step in the run.
__device__ inline void correct_rates(
    const Size* run, Size index, int steps, int adam, double beta1, double beta2, double eps,
    double decay, double eps_hat, double* rates
) {
    const double* all = (const double*)run[RUN_RATES];
    for (int i = threadIdx.x; i < steps; i += THREADS) {
        StepState step;
        step.rate = all ? all[index + i] : ((const double*)run)[RUN_RATE];
        step.step = (Wide)(run[RUN_FIRST_STEP] + index + i);
        correct_rate(&step, adam, beta1, beta2, eps, decay, eps_hat);
        rates[3 * i] = step.corrected_rate;
        rates[3 * i + 1] = step.corrected_eps;
        rates[3 * i + 2] = step.keep;
    }
}
