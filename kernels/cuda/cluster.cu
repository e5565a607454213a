// What a few blocks that run at the same time, a cluster, can do for each other: meet, and read and
// write each other's shared memory. Before Hopper (sm_90) a cluster is one block.

#ifndef ON_HOST  // the stand-in of the tests brings its own

#define NOT_INLINE __noinline__

extern __shared__ double given_memory[];

// The shared memory that a launch asks for.
__device__ inline char* shared_memory() { return (char*)given_memory; }

// All threads of all blocks of the cluster meet; what they wrote before is seen by all.
__device__ inline void meet_cluster() {
#if __CUDA_ARCH__ >= 900
    // one thread for all of its block: a fence by each takes five times as long
    __syncthreads();
    if (threadIdx.x == 0) asm volatile("fence.acq_rel.cluster;" ::: "memory");
    asm volatile(
        "barrier.cluster.arrive.relaxed;\n\tbarrier.cluster.wait.acquire;" :::
        "memory"
    );
#else
    __syncthreads();
#endif
}

// The same place in another block's shared memory.
template <typename T>
__device__ inline T* of_block(T* own, int block) {
#if __CUDA_ARCH__ >= 900
    Wide there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"((Wide)own), "r"(block));
    return (T*)there;
#else
    return own;
#endif
}

// Copy 4 or 8 bytes from global to shared memory, without waiting for them.
template <typename T>
__device__ inline void copy_later(T* to, const T* from) {
#if __CUDA_ARCH__ >= 800
    Word place = (Word)__cvta_generic_to_shared(to);
    asm volatile(
        "cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(sizeof(T)) :
        "memory"
    );
#else
    *to = *from;
#endif
}

// Wait for the thread's own copies.
__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

#endif

// All threads of all blocks meet, in a launch of so many as one cluster.
template <int BLOCKS>
__device__ inline void meet_blocks() {
    if (BLOCKS > 1)
        meet_cluster();
    else
        __syncthreads();
}
