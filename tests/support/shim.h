// Just enough CUDA to run the kernels on a CPU, blocks one after another.
//
// Each thread of a block is a fibre: it runs until it meets a barrier or a shuffle, then the next
// one does, in the order asked for. Shared memory is poisoned before each block. A barrier that not
// all threads reach, or a shuffle that not all lanes of a warp do, ends the launch with a message.
// The blocks of a launch that asks for shared memory run together, a cluster or the whole grid, each
// with memory of its own and a guard behind it; what such a kernel declares as shared is not.

#include <algorithm>
#include <climits>
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

#define ON_HOST
#define NOT_INLINE __attribute__((noinline))
#define UNROLLED
#define UNROLLED_BY_4
#define UNROLLED_BY_8
#define NOT_UNROLLED
#define __global__
#define __device__
#define __shared__ static __attribute__((section("shared_memory")))

using std::erfc; using std::exp; using std::expm1; using std::fabs; using std::log;
using std::log1p; using std::sqrt; using std::tanh;

static inline float __fdividef(float a, float b) { return a / b; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((__uint128_t)a * b >> 64);
}

struct Index { unsigned x; };
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

enum State { READY, AT_BARRIER, AT_CLUSTER, AT_SHUFFLE, DONE };
const int MOST_THREADS = 4096, WARP_SIZE = 32;
const size_t STACK = 1 << 16, GUARD = 256;

static State states[MOST_THREADS];
static unsigned running;                       // the thread whose fibre runs
static unsigned first_block;                   // of those whose fibres run
static size_t shared_bytes;                    // of each, if they asked for memory
static std::vector<char> given;
// A copy of the first bytes, the others being zeros; those of a group are waited for together.
struct Copy { void* to; const void* from; size_t copied, size; int group; };
static std::vector<Copy> copies[MOST_THREADS]; // that nobody has waited for yet
static int groups[MOST_THREADS];               // that have ended
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
}

// Go on with a thread.
static void go_on(unsigned thread) {
    running = thread;
    threadIdx.x = thread % blockDim.x;
    blockIdx.x = first_block + thread / blockDim.x;
    resume(thread);
}

static char* memory_of(unsigned block) { return given.data() + block * (shared_bytes + GUARD); }

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

static void run_blocks(
    unsigned blocks, unsigned threads, const std::vector<unsigned>& order, bool last_first
) {
    if (__start_shared_memory)
        memset(__start_shared_memory, 0xFF, __stop_shared_memory - __start_shared_memory);
    given.assign(blocks * (shared_bytes + GUARD), (char)0xFF);
    const unsigned all = blocks * threads;
    for (unsigned i = 0; i < all; i++) {
        states[i] = READY;
        turns[i] = 0;
        copies[i].clear();
        groups[i] = 0;
        prepare(i);
    }
    for (;;) {
        // each block as far as it comes without the others
        for (unsigned k = 0; k < blocks; k++) {
            const unsigned first = threads * (last_first ? blocks - 1 - k : k);
            for (bool moved = true; moved;) {
                for (unsigned i : order)
                    if (states[first + i] == READY) go_on(first + i);
                moved = release(first, threads, AT_BARRIER, false);
                for (unsigned warp = first; warp < first + threads; warp += WARP_SIZE)
                    moved |= release(warp, WARP_SIZE, AT_SHUFFLE, true);
            }
        }
        if (release(0, all, AT_CLUSTER, false)) continue;
        for (unsigned i = 0; i < all; i++)
            if (states[i] != DONE)
                failure = states[i] == AT_SHUFFLE ? "a shuffle that not all lanes take part in"
                                                  : "a barrier that not all threads reach";
        break;
    }
    for (unsigned block = 0; block < blocks; block++)
        for (size_t i = 0; i < GUARD; i++)
            if (memory_of(block)[shared_bytes + i] != (char)0xFF)
                failure = "somebody wrote behind the end of shared memory";
}

static const char* run(
    std::function<void()> kernel, unsigned blocks, unsigned threads, int order, unsigned seed,
    size_t shared
) {
    if (!stacks)
        stacks = (char*)mmap(
            0, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const unsigned together = shared ? blocks : 1;
    std::vector<unsigned> places(threads);
    for (unsigned i = 0; i < threads; i++) places[i] = i;
    shared_bytes = shared;
    if (order == 1) std::reverse(places.begin(), places.end());
    if (order == 2) std::shuffle(places.begin(), places.end(), std::mt19937(seed));
    body = kernel;
    failure = 0;
    blockDim.x = threads;
    gridDim.x = blocks;
    for (unsigned i = 0; i < blocks && !failure; i += together) {
        // blocks come in that order too
        first_block = order == 1 ? blocks - together - i : i;
        run_blocks(together, threads, places, order == 1);
    }
    return failure;
}

static void copy(void* to, const void* from, size_t copied, size_t size) {
    if ((uintptr_t)to % size || (copied && (uintptr_t)from % size))
        failure = "a copy to or from a place that is not aligned";
    copies[running].push_back({to, from, copied, size, groups[running]});
}

// What was to be copied by the groups before this one.
static void arrive(int group) {
    std::vector<Copy> later;
    for (Copy& copy : copies[running]) {
        if (copy.group >= group) {
            later.push_back(copy);
            continue;
        }
        memcpy(copy.to, copy.from, copy.copied);
        memset((char*)copy.to + copy.copied, 0, copy.size - copy.copied);
    }
    copies[running].swap(later);
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

// What kernels/cuda/cluster.cu has for a GPU.
static inline char* shared_memory() { return shim::memory_of(blockIdx.x - shim::first_block); }
static inline void meet_cluster() { shim::wait(shim::AT_CLUSTER); }
template <typename T>
static inline T* of_block(T* own, int block) {
    return (T*)(shim::memory_of(block) + ((char*)own - shared_memory()));
}
template <typename T>
static inline void copy_later(T* to, const T* from) {
    shim::copy(to, from, sizeof(T), sizeof(T));
}
static inline void wait_for_copies() { shim::arrive(INT_MAX); }

// What kernels/cuda/grid.cu has.
static inline void meet_grid(unsigned*, unsigned) { shim::wait(shim::AT_CLUSTER); }
typedef char* Place;
static inline Place place_of(void* x) { return (Place)x; }
static inline void copy_quad_later(Place to, const void* from) { shim::copy(to, from, 16, 16); }
static inline void copy_some_later(Place to, const void* from, int bytes) {
    shim::copy(to, from, bytes, 16);
}
static inline void come_near(const void*) {}
static inline void end_group_of_copies() { shim::groups[shim::running]++; }
template <int LEFT>
static inline void wait_for_groups() { shim::arrive(shim::groups[shim::running] - LEFT); }

template <typename Value>
static inline Value __shfl_xor_sync(unsigned, Value value, int lane_mask) {
    unsigned thread = shim::running;
    uint64_t* shown = shim::lanes[shim::turns[thread]++ % 2];
    memcpy(&shown[thread], &value, sizeof(value));
    shim::wait(shim::AT_SHUFFLE);
    memcpy(&value, &shown[thread ^ lane_mask], sizeof(value));
    return value;
}

static inline void __syncwarp() { shim::wait(shim::AT_SHUFFLE); }

#define REGISTER(kernel) \
    extern "C" const char* types_##kernel() { return shim::types(&kernel); } \
    extern "C" const char* launch_##kernel( \
        unsigned blocks, unsigned threads, int order, unsigned seed, size_t shared, \
        void** values) { \
        return shim::run( \
            [=] { shim::call(&kernel, values); }, blocks, threads, order, seed, shared); \
    }
