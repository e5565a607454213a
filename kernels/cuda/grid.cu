// What all blocks of a launch can do that run at the same time: meet. And copies to shared memory
// that are waited for in groups.

#ifndef ON_HOST  // the stand-in of the tests brings its own

#define UNROLLED _Pragma("unroll")
#define UNROLLED_BY_4 _Pragma("unroll 4")
#define UNROLLED_BY_8 _Pragma("unroll 8")
#define NOT_UNROLLED _Pragma("unroll 1")

// All threads of all blocks meet, for ``all`` arrivals of blocks since ``arrived`` was 0; what they
// wrote before is seen by all.
__device__ inline void meet_grid(Word* arrived, Word all) {
    __syncthreads();
    if (threadIdx.x == 0) {
        Word there;
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(arrived) : "memory");
        while (there < all);
    }
    __syncthreads();
}

// A place in shared memory. The compiler is not to work it out again for each copy, which would take
// longer than the copy.
typedef Word Place;
__device__ inline Place place_of(const void* x) {
    Place place = (Place)__cvta_generic_to_shared(x);
    asm volatile("" : "+r"(place));
    return place;
}

// Copy 16 bytes.
__device__ inline void copy_quad_later(Place to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Copy the first ``bytes`` of 16 bytes, the others being zeros.
__device__ inline void copy_some_later(Place to, const void* from, int bytes) {
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory"
    );
}

// A number will be read soon.
__device__ inline void come_near(const void* x) {
    asm volatile("prefetch.global.L1 [%0];" ::"l"(x));
}

// What was copied since the last call is a group.
__device__ inline void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait for the thread's own copies, but for those of the last LEFT groups.
template <int LEFT>
__device__ inline void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

#endif
