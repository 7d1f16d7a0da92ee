// A pool of threads that work on one step together: start all, meet at barriers, go back to sleep.
//
// Waiting spins for a moment, because phases last microseconds; then it gives the core away, because a busy
// neighbour on the same cores may be what it waits for. Between steps the threads sleep on a futex.
#pragma once
#include <atomic>
#include <cstdint>
#include <ctime>
#include <thread>
#include <vector>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace kf {

KF_INLINE void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
  public:
    using Job = void (*)(void*, int);

    explicit Pool(int threads) : size_(threads < 1 ? 1 : threads) {
        for (int id = 1; id < size_; id++) workers_.emplace_back([this, id] { work(id); });
    }
    ~Pool() {
        stop_.store(true);
        wake();
        for (auto& worker : workers_) worker.join();
    }
    int size() const { return size_; }
    int active() const { return active_; }  // threads of the running job

    // Calls job(argument, id) in every thread, id 0 being the caller, and returns when all are through. `alone`: in the
    // caller only, for jobs so small that waking and meeting others takes longer.
    void run(Job job, void* argument, bool alone = false) {
        if (alone_for_ > 0) alone_for_--, alone = true;
        active_ = alone ? 1 : size_;
        if (active_ == 1) { job(argument, 0); return; }
        const int64_t start = now();
        waited_.store(0, std::memory_order_relaxed);
        job_ = job;
        argument_ = argument;
        wake();
        job(argument, 0);
        barrier();
        // Where neighbours have the cores, threads wait for each other most of the time: then one is quicker than all.
        // One job says nothing of that: its core may have been away for a moment.
        const bool starved = waited_.load(std::memory_order_relaxed) * 5 > (now() - start) * size_ * 2;
        starved_jobs_ = starved ? starved_jobs_ + 1 : 0;
        if (starved_jobs_ == STARVED_JOBS) starved_jobs_ = 0, alone_for_ = ALONE_JOBS;
    }

    // Every thread of a running job calls it equally often; what was written before is seen after.
    void barrier() {
        if (active_ == 1) return;
        const uint32_t round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; spins < BARRIER_SPINS; spins++) {
            if (round_.load(std::memory_order_acquire) != round) return;
            relax();
        }
        const int64_t start = now();
        while (round_.load(std::memory_order_acquire) == round) sched_yield();
        waited_.fetch_add(now() - start, std::memory_order_relaxed);
    }

  private:
    static constexpr int BARRIER_SPINS = 4000, IDLE_SPINS = 4000, STARVED_JOBS = 4, ALONE_JOBS = 16;

    static int64_t now() {  // nanoseconds
        timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
    }

    void wake() {
        generation_.fetch_add(1);
        if (sleepers_.load() > 0)
            syscall(SYS_futex, reinterpret_cast<uint32_t*>(&generation_), FUTEX_WAKE_PRIVATE, size_, nullptr, nullptr, 0);
    }
    void work(int id) {
        for (uint32_t seen = 0;; seen++) {
            for (int spins = 0; generation_.load(std::memory_order_acquire) == seen; spins++) {
                if (spins < IDLE_SPINS) { relax(); continue; }
                sleepers_.fetch_add(1);
                syscall(SYS_futex, reinterpret_cast<uint32_t*>(&generation_), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
                sleepers_.fetch_sub(1);
            }
            if (stop_.load()) return;
            job_(argument_, id);
            barrier();
        }
    }

    const int size_;
    int active_ = 1, starved_jobs_ = 0, alone_for_ = 0;
    std::atomic<int64_t> waited_{0};  // by all threads, in barriers of the running job, after spinning
    Job job_ = nullptr;
    void* argument_ = nullptr;
    alignas(64) std::atomic<uint32_t> generation_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> round_{0};
    std::vector<std::thread> workers_;
};

}  // namespace kf
