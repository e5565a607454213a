// Just enough CUDA to run the kernels on a CPU, blocks one after another.
//
// Each thread of a block is a fibre: it runs until it meets a barrier or a shuffle, then the next
// one does, in the order asked for. Shared memory is poisoned before each block. A barrier that not
// all threads reach, or a shuffle that not all lanes of a warp do, ends the launch with a message.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <sys/mman.h>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static __attribute__((section("shared_memory")))

using std::erfc; using std::exp; using std::expm1; using std::fabs; using std::log;
using std::log1p; using std::sqrt; using std::tanh;

struct Index { unsigned x; };
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };
const int MOST_THREADS = 1024, WARP_SIZE = 32;
const size_t STACK = 1 << 16;

static State states[MOST_THREADS];
static unsigned running;                       // the thread whose fibre runs
static uint64_t lanes[2][MOST_THREADS];        // what lanes show each other; two turns by turns
static int turns[MOST_THREADS];
static std::function<void()> body;
static char* stacks;
static const char* failure;

#if defined(__x86_64__)
// A fibre is its stack pointer: saved registers lie on the stack.
static void *fibres[MOST_THREADS], *scheduler;
extern "C" void shim_switch(void** save, void* load);
asm(".text\n.globl shim_switch\nshim_switch:\n"
    "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
    "movq %rsp, (%rdi); movq %rsi, %rsp\n"
    "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
    "ret\n");
static void yield() { shim_switch(&fibres[running], scheduler); }
static void resume(unsigned thread) { shim_switch(&scheduler, fibres[thread]); }
static void finish();
static void prepare(unsigned thread) {
    uint64_t* top = (uint64_t*)(stacks + (thread + 1) * STACK) - 2;
    top[0] = (uint64_t)&finish;                // where the first switch returns to
    memset(top - 6, 0, 6 * sizeof(*top));
    fibres[thread] = top - 6;
}
#else
static ucontext_t fibres[MOST_THREADS], scheduler;
static void yield() { swapcontext(&fibres[running], &scheduler); }
static void resume(unsigned thread) { swapcontext(&scheduler, &fibres[thread]); }
static void finish();
static void prepare(unsigned thread) {
    getcontext(&fibres[thread]);
    fibres[thread].uc_stack.ss_sp = stacks + thread * STACK;
    fibres[thread].uc_stack.ss_size = STACK;
    makecontext(&fibres[thread], &finish, 0);
}
#endif

static void finish() {
    body();
    states[running] = DONE;
    yield();
}

static void wait(State state) {
    unsigned thread = running;
    states[thread] = state;
    yield();
    running = threadIdx.x = thread;
}

// Let go the threads from first on whose last one has come to their meeting.
static bool release(unsigned first, unsigned count, State meeting, bool exited_count) {
    unsigned here = 0, done = 0;
    for (unsigned i = first; i < first + count; i++) {
        here += states[i] == meeting;
        done += states[i] == DONE;
    }
    if (!here || here + (exited_count ? 0 : done) != count) return false;
    for (unsigned i = first; i < first + count; i++)
        if (states[i] == meeting) states[i] = READY;
    return true;
}

extern "C" char __start_shared_memory[] __attribute__((weak));
extern "C" char __stop_shared_memory[] __attribute__((weak));

static void run_block(unsigned threads, const std::vector<unsigned>& order) {
    if (__start_shared_memory)
        memset(__start_shared_memory, 0xFF, __stop_shared_memory - __start_shared_memory);
    for (unsigned i = 0; i < threads; i++) {
        states[i] = READY;
        turns[i] = 0;
        prepare(i);
    }
    for (;;) {
        for (unsigned i : order)
            if (states[i] == READY) {
                running = threadIdx.x = i;
                resume(i);
            }
        bool moved = release(0, threads, AT_BARRIER, false);
        for (unsigned warp = 0; warp < threads; warp += WARP_SIZE)
            moved |= release(warp, WARP_SIZE, AT_SHUFFLE, true);
        if (moved) continue;
        for (unsigned i = 0; i < threads; i++)
            if (states[i] != DONE)
                failure = states[i] == AT_BARRIER ? "a barrier that not all threads reach"
                                                  : "a shuffle that not all lanes take part in";
        return;
    }
}

static const char* run(
    std::function<void()> kernel, unsigned blocks, unsigned threads, int order, unsigned seed
) {
    if (!stacks)
        stacks = (char*)mmap(
            0, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    std::vector<unsigned> places(threads);
    for (unsigned i = 0; i < threads; i++) places[i] = i;
    if (order == 1) std::reverse(places.begin(), places.end());
    if (order == 2) std::shuffle(places.begin(), places.end(), std::mt19937(seed));
    body = kernel;
    failure = 0;
    blockDim.x = threads;
    gridDim.x = blocks;
    for (unsigned i = 0; i < blocks && !failure; i++) {
        // blocks come in that order too
        blockIdx.x = order == 1 ? blocks - 1 - i : i;
        run_block(threads, places);
    }
    return failure;
}

// A kernel's arguments come as a launch gives them: an array of their addresses.
template <typename... Arguments, size_t... place>
static void call(
    void (*kernel)(Arguments...), void** values, std::index_sequence<place...>
) {
    kernel(*(Arguments*)values[place]...);
}
template <typename... Arguments>
static void call(void (*kernel)(Arguments...), void** values) {
    call(kernel, values, std::index_sequence_for<Arguments...>());
}

// The types of a kernel's arguments, a letter for each, a capital one for an address.
template <typename Type> struct Letter { static const char value = '?'; };
template <> struct Letter<int> { static const char value = 'i'; };
template <> struct Letter<long long> { static const char value = 'l'; };
template <> struct Letter<unsigned short> { static const char value = 'h'; };
template <> struct Letter<unsigned> { static const char value = 'u'; };
template <> struct Letter<unsigned long long> { static const char value = 'w'; };
template <> struct Letter<float> { static const char value = 'f'; };
template <> struct Letter<double> { static const char value = 'd'; };
template <typename Type> struct Letter<const Type> : Letter<Type> {};
template <typename Type> struct Letter<Type*> {
    static const char value = Letter<Type>::value == '?' ? '?' : Letter<Type>::value - 32;
};
template <typename... Arguments>
static const char* types(void (*)(Arguments...)) {
    static const char letters[] = {Letter<Arguments>::value..., 0};
    return letters;
}

}  // namespace shim

static inline void __syncthreads() { shim::wait(shim::AT_BARRIER); }

template <typename Value>
static inline Value __shfl_xor_sync(unsigned, Value value, int lane_mask) {
    unsigned thread = shim::running;
    uint64_t* shown = shim::lanes[shim::turns[thread]++ % 2];
    memcpy(&shown[thread], &value, sizeof(value));
    shim::wait(shim::AT_SHUFFLE);
    memcpy(&value, &shown[thread ^ lane_mask], sizeof(value));
    return value;
}

#define REGISTER(kernel) \
    extern "C" const char* types_##kernel() { return shim::types(&kernel); } \
    extern "C" const char* launch_##kernel( \
        unsigned blocks, unsigned threads, int order, unsigned seed, void** values) { \
        return shim::run( \
            [=] { shim::call(&kernel, values); }, blocks, threads, order, seed); \
    }
