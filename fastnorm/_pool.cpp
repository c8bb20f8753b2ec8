// The thread pool of fastnorm: fastnorm_parallel_for runs the blocks of a task on several threads.
//
// A job's blocks are cut into as many contiguous ranges as threads take part: the team. Participant
// 0 is the caller, the others are workers. Each claims the blocks of its own range one by one, so
// that the same thread meets the same memory from call to call, and then what is left in the
// others' ranges. When nothing is left to claim, the caller waits for the blocks still in progress,
// and for nothing else: a worker that is asleep, or that has no core, is never waited for. No job
// therefore depends on any worker, and waking one is only a hint.
//
// One job runs at a time. A call from another thread meanwhile, or from inside a block, computes
// serially. Workers are created at need, sleep between jobs, and are never joined: the pool is
// leaked on purpose, and sleeping threads do not hinder the exit of the process.

#if defined(_MSC_VER)
// Without this, a std::mutex crashes if the process has loaded an older msvcp140.dll than ours.
#define _DISABLE_CONSTEXPR_MUTEX_CONSTRUCTOR
#endif

#include "_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <iterator>
#include <mutex>
#include <new>
#include <thread>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(_WIN32)
#include <intrin.h>
#else
#include <pthread.h>
#include <signal.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

constexpr int MAX_TEAM = FASTNORM_MAX_TEAM;

// What two cores may write at the same time lies 128 bytes apart: two cache lines, because x86
// fetches lines in pairs, and one line of an Apple core.
constexpr std::size_t APART = 128;

// What it costs to wake a worker, roughly: a system call in the caller (2 us, on a virtual machine
// 8), and the time until the worker has come (5 us, from an idle core of a virtual machine 26).
constexpr auto WAKE_TIME = std::chrono::microseconds(20);

// A worker stays awake for this long after a job if the caller came back as fast as that before it.
// Where a call has filled the caches, Python takes 20 to 40 us until the next one.
constexpr auto SPIN_TIME = std::chrono::microseconds(50);

// The caller waits for blocks in progress with this many pauses (some 10 to 50 us) before it offers
// its core to others, perhaps to the very worker that it waits for.
constexpr int PAUSES_BEFORE_YIELD = 1000;

// After the system has refused a thread, this many calls make do with the workers there are.
constexpr int CALLS_BEFORE_RETRY = 1000;

// A range's claim word is epoch << COUNT_BITS | blocks not yet claimed. The epoch numbers the jobs.
// It thus counts modulo 2^40: at a million jobs per second it comes round after 12 days.
constexpr int COUNT_BITS = 24;
constexpr std::uint64_t MAX_COUNT = (std::uint64_t(1) << COUNT_BITS) - 1;

struct alignas(APART) Range {
    std::atomic<std::uint64_t> claim_word{0};
    std::atomic<std::ptrdiff_t> end{0};  // the block after the last
    std::atomic<std::ptrdiff_t> unfinished{0};

    // Blocks of the job `epoch` that are still to be claimed, given a value of claim_word.
    static std::uint64_t unclaimed(std::uint64_t word, std::uint64_t epoch) {
        bool same_job = ((word ^ (epoch << COUNT_BITS)) >> COUNT_BITS) == 0;
        return same_job ? word & MAX_COUNT : 0;
    }
};

struct alignas(APART) Worker {
    std::atomic<bool> asleep{false};
    std::mutex mutex;
    std::condition_variable wakeup;
};

struct Pool {
    // The job. Written by the caller while no block is in progress, read by workers at any time.
    alignas(APART) std::atomic<std::uint64_t> epoch{0};
    std::atomic<fastnorm_block_function> function{nullptr};
    std::atomic<void *> task{nullptr};
    std::atomic<int> team{0};
    std::atomic<int> spinning_team{0};  // team, or 0 if the workers should sleep after the job

    // Only for the thread that has set `busy`.
    alignas(APART) Clock::time_point last_return{};
    int calls_until_retry = 0;
    Clock::duration serial_times[64];  // what calls would take serially; see serial_time()

    Range ranges[MAX_TEAM];
    Worker workers[MAX_TEAM];  // the first is the caller's, and not used

    Pool() { std::fill(std::begin(serial_times), std::end(serial_times), Clock::duration::max()); }

    Clock::duration &serial_time(fastnorm_block_function f, std::ptrdiff_t num_blocks) {
        auto key = reinterpret_cast<std::uintptr_t>(f) / 16 + 7 * std::uintptr_t(num_blocks);
        return serial_times[key % 64];
    }
};

std::atomic<bool> busy{false};  // some thread is inside a threaded call; it owns `the_pool`
Pool *the_pool = nullptr;
std::atomic<int> num_workers{0};
thread_local int participant = 0;  // of the job whose block this thread runs

#if !defined(_WIN32)
// A forked child has none of the parent's workers, and another thread of the parent may have been
// in the middle of a job: forget it all. Registered when the module is loaded, before any job.
void forget_pool() {
    the_pool = nullptr;
    num_workers.store(0);
    busy.store(false);
}
const int fork_handler = pthread_atfork(nullptr, nullptr, forget_pool);
#endif

inline void pause() {
#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
    _mm_pause();
#elif defined(_MSC_VER)
    __yield();
#elif defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");  // "yield" does nothing on most cores
#endif
}

// Blocks may write past the cache, with stores that only this fence brings into order.
inline void fence_streams() {
#if defined(__SSE2__) || defined(_M_X64)
    _mm_sfence();
#endif
}

void run_serially(fastnorm_block_function function, void *task, std::ptrdiff_t num_blocks) {
    const int before = participant;  // of the job that this call is nested in
    participant = 0;
    for (std::ptrdiff_t block = 0; block < num_blocks; ++block) function(task, block);
    participant = before;
    fence_streams();
}

// The worker must not sleep through a job that was published while it lay down. It sets `asleep`
// and then looks at the epoch; a waker has written (or read) the new epoch and then looks at
// `asleep`. All four are seq_cst, so that at least one of the two sees what the other has done.
void wake(Worker &worker) {
    if (!worker.asleep.load(std::memory_order_seq_cst)) return;
    // The lock is taken while the worker lies down, or another wakes it. That takes a moment,
    // unless the worker has lost its core in the middle: then do without it rather than wait.
    std::unique_lock<std::mutex> lock(worker.mutex, std::try_to_lock);
    for (int i = 0; i < 100 && !lock.owns_lock(); ++i) {
        pause();
        (void)lock.try_lock();
    }
    if (!lock.owns_lock() || !worker.asleep.load(std::memory_order_relaxed)) return;
    worker.asleep.store(false, std::memory_order_relaxed);
    lock.unlock();
    worker.wakeup.notify_one();
}

// Waits until the epoch is no longer `seen` (almost always) and returns it.
std::uint64_t wait_for_job(Pool &pool, Worker &worker, std::uint64_t seen, bool spin) {
    if (spin) {
        const auto deadline = Clock::now() + SPIN_TIME;
        do {
            for (int i = 0; i < 16; ++i) {
                // acquire: with the epoch, the job and all that the task points to.
                std::uint64_t epoch = pool.epoch.load(std::memory_order_acquire);
                if (epoch != seen) return epoch;
                pause();
            }
            std::this_thread::yield();  // there may be more threads than cores
        } while (Clock::now() < deadline);
    }
    std::unique_lock<std::mutex> lock(worker.mutex);
    worker.asleep.store(true, std::memory_order_seq_cst);
    if (pool.epoch.load(std::memory_order_seq_cst) == seen)
        worker.wakeup.wait(lock, [&] { return !worker.asleep.load(std::memory_order_relaxed); });
    worker.asleep.store(false, std::memory_order_relaxed);
    return pool.epoch.load(std::memory_order_seq_cst);
}

// Wakes the owner of a range if it sleeps and there is something left for it to do.
void invite(Pool &pool, std::uint64_t epoch, int participant) {
    auto word = pool.ranges[participant].claim_word.load(std::memory_order_relaxed);
    if (Range::unclaimed(word, epoch) > 0) wake(pool.workers[participant]);
}

// Takes part in the job `epoch`. Returns how many blocks this thread has run.
//
// A worker may be late: while it reads the job, that may have ended and the next may be being
// written, so that what it has read belongs to neither. It finds out by claiming. A claim succeeds
// only if the word still holds the tag of `epoch` and a count above zero. Then that block was
// unfinished, and will be until we count it as finished; the caller writes the next job after it
// has seen that. So the writes of the next job happen after our reads, which cannot have seen them.
// Nor can they have seen an earlier job, since the epoch was acquired before. All that the reads
// need is to be atomic.
std::int64_t take_part(Pool &pool, std::uint64_t epoch, int self) {
    const auto function = pool.function.load(std::memory_order_relaxed);
    void *const task = pool.task.load(std::memory_order_relaxed);
    const int team = pool.team.load(std::memory_order_relaxed);
    std::int64_t num_run = 0;
    if (self >= team) return num_run;

    // Waking is a system call. Along a tree, the caller of a team of 64 makes two of them, not 63.
    for (int child = 2 * self + 1; child <= 2 * self + 2 && child < team; ++child)
        invite(pool, epoch, child);

    for (int i = 0; i < team; ++i) {
        const int owner = self + i < team ? self + i : self + i - team;
        // The one who should have woken this owner may itself not have come.
        if (owner != self) invite(pool, epoch, owner);

        Range &range = pool.ranges[owner];
        const std::ptrdiff_t end = range.end.load(std::memory_order_relaxed);
        auto word = range.claim_word.load(std::memory_order_relaxed);
        while (auto count = Range::unclaimed(word, epoch)) {
            // relaxed: the epoch, acquired, has brought the data; `unfinished` will take it back.
            if (!range.claim_word.compare_exchange_weak(word, word - 1, std::memory_order_relaxed))
                continue;
            function(task, end - static_cast<std::ptrdiff_t>(count));
            fence_streams();
            // release: the caller who sees this sees what the block has written.
            range.unfinished.fetch_sub(1, std::memory_order_release);
            ++num_run;
            word = range.claim_word.load(std::memory_order_relaxed);
        }
    }
    return num_run;
}

void work(Pool *pool, int self, std::uint64_t epoch) noexcept {
    participant = self;
    for (bool spin = false;;) {
        epoch = wait_for_job(*pool, pool->workers[self], epoch, spin);
        take_part(*pool, epoch, self);
        spin = self < pool->spinning_team.load(std::memory_order_relaxed);
    }
}

// Sees to it that a team of this size exists, if possible; returns the size of the one there is.
int gather_team(Pool &pool, int team) {
    int size = 1 + num_workers.load(std::memory_order_relaxed);
    if (size >= team) return team;
    if (pool.calls_until_retry > 0) {
        --pool.calls_until_retry;
        return size;
    }
#if !defined(_WIN32)
    // A worker inherits the mask: signals are for the threads of the program, not for ours.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
    try {
        for (; size < team; ++size)
            std::thread(work, &pool, size, pool.epoch.load(std::memory_order_relaxed)).detach();
    } catch (const std::exception &) {
        pool.calls_until_retry = CALLS_BEFORE_RETRY;
    }
#if !defined(_WIN32)
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
    num_workers.store(size - 1, std::memory_order_relaxed);
    return size;
}

// Runs the blocks [first, first + num_blocks), of which there are at most MAX_COUNT. Returns how
// many of them the caller has run itself.
std::int64_t run_job(Pool &pool, fastnorm_block_function function, void *task,
                     std::ptrdiff_t first, std::ptrdiff_t num_blocks, int team, bool spin) {
    const std::uint64_t epoch = pool.epoch.load(std::memory_order_relaxed) + 1;
    pool.function.store(function, std::memory_order_relaxed);
    pool.task.store(task, std::memory_order_relaxed);
    pool.team.store(team, std::memory_order_relaxed);
    pool.spinning_team.store(spin ? team : 0, std::memory_order_relaxed);
    std::int64_t begin = 0;
    for (int i = 0; i < team; ++i) {
        const std::int64_t end = (i + 1) * std::int64_t(num_blocks) / team;
        const std::int64_t count = end - begin;
        Range &range = pool.ranges[i];
        range.end.store(static_cast<std::ptrdiff_t>(first + end), std::memory_order_relaxed);
        range.unfinished.store(static_cast<std::ptrdiff_t>(count), std::memory_order_relaxed);
        range.claim_word.store(epoch << COUNT_BITS | std::uint64_t(count),
                               std::memory_order_relaxed);
        begin = end;
    }
    // Publishes all of the above and what the caller has written before; seq_cst because of wake().
    pool.epoch.store(epoch, std::memory_order_seq_cst);

    const std::int64_t num_run = take_part(pool, epoch, 0);
    for (int i = 0; i < team; ++i) {
        // acquire: what the blocks have written. The decrements of several threads form one release
        // sequence, so that the last brings the results of all.
        for (int pauses = 0; pool.ranges[i].unfinished.load(std::memory_order_acquire) > 0;) {
            if (pauses < PAUSES_BEFORE_YIELD) {
                ++pauses;
                pause();
            } else {
                std::this_thread::yield();
            }
        }
    }
    return num_run;
}

}  // namespace

extern "C" void fastnorm_parallel_for(fastnorm_block_function function, void *task,
                                      std::ptrdiff_t num_blocks, int num_threads) {
    int team = static_cast<int>(std::min<std::ptrdiff_t>({num_threads, num_blocks, MAX_TEAM}));
    // acquire and, below, release: the next owner of the pool finds it as this one left it.
    if (team <= 1 || busy.load(std::memory_order_relaxed) ||
        busy.exchange(true, std::memory_order_acquire)) {
        run_serially(function, task, num_blocks);
        return;
    }
    if (!the_pool) the_pool = new (std::nothrow) Pool;
    team = the_pool ? gather_team(*the_pool, team) : 1;
    if (team <= 1) {
        busy.store(false, std::memory_order_release);
        run_serially(function, task, num_blocks);
        return;
    }
    Pool &pool = *the_pool;
    const auto start = Clock::now();
    const bool back_to_back = start - pool.last_return < SPIN_TIME;
    auto &serial_time = pool.serial_time(function, num_blocks);
    std::ptrdiff_t first = 0;

    // The workers sleep, and last time there was too little to do to wake them: do it alone, unless
    // it turns out to be more. (In a series of short calls it pays to wake them for the next ones.)
    if (!back_to_back && serial_time - serial_time / team < WAKE_TIME)
        while (first < num_blocks && Clock::now() - start < 2 * WAKE_TIME) function(task, first++);

    const std::int64_t alone = first;
    std::int64_t num_run = alone;
    while (first < num_blocks) {
        const auto count = std::min(num_blocks - first, static_cast<std::ptrdiff_t>(MAX_COUNT));
        num_run += run_job(pool, function, task, first, count, team, back_to_back);
        first += count;
    }
    fence_streams();
    pool.last_return = Clock::now();

    // Exact if all was done alone; else from this thread's share, as the others' speed is unknown.
    // Sharing may have slowed it down, hence the least that was seen.
    auto elapsed = pool.last_return - start;
    if (alone == 0 && !back_to_back) elapsed -= WAKE_TIME;
    const auto estimate = elapsed / std::max<std::int64_t>(num_run, 1) * num_blocks;
    serial_time = alone > 0 ? estimate : std::min(serial_time, estimate);
    busy.store(false, std::memory_order_release);
}

extern "C" int fastnorm_participant(void) { return participant; }

extern "C" int fastnorm_pool_size(void) { return num_workers.load(std::memory_order_relaxed); }
