// Hammers the thread pool and checks that every block of every job runs exactly once, before the
// call returns, and that the caller sees what the blocks have written.
//
//     pool_stress SECONDS
//
// Prints a line and exits with 0 if all is well. test_pool.py compiles and runs it, also with
// sanitizers.

#include "../fastnorm/_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

// The sanitizers' own locks are not made for forking while other threads run.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

namespace {

#if defined(SANITIZED)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

using Clock = std::chrono::steady_clock;

std::atomic<long> num_jobs{0};
std::atomic<long> num_helped{0};  // jobs of which a worker ran a block

[[noreturn]] void fail(const char *what) {
    std::fprintf(stderr, "pool_stress: %s\n", what);
    std::_Exit(1);
}

void spin_for(int microseconds) {
    const auto until = Clock::now() + std::chrono::microseconds(microseconds);
    while (Clock::now() < until) {
    }
}

enum Delay { NONE, SHORT, UNEVEN, SLEEPY };

struct Task {
    int kind = 0;  // which of the two block functions must run it
    Delay delay = NONE;
    bool nested = false;
    std::atomic<bool> open{false};  // during the call
    std::atomic<bool> helped{false};
    std::thread::id caller;
    int num_threads = 1;
    std::atomic<bool> taking_part[64] = {};  // who is inside a block
    std::vector<int> runs;          // per block; plain, so that ThreadSanitizer sees missing order
    std::vector<std::uint64_t> input, output;
};

void run_block(Task *task, std::ptrdiff_t block);

template <int kind>
void block_function(void *argument, std::ptrdiff_t block) {
    auto *task = static_cast<Task *>(argument);
    if (!task->open.load(std::memory_order_relaxed)) fail("a block ran outside of its call");
    if (task->kind != kind) fail("a block ran with the function of another job");
    if (block < 0 || block >= std::ptrdiff_t(task->runs.size())) fail("there is no such block");
    run_block(task, block);
}

void check_nested(std::ptrdiff_t block) {
    Task inner;
    inner.runs.assign(5, 0);
    inner.input.assign(5, std::uint64_t(block));
    inner.output.assign(5, 0);
    inner.open = true;
    inner.num_threads = 4;
    const int self = fastnorm_participant();
    fastnorm_parallel_for(block_function<0>, &inner, 5, inner.num_threads);
    if (fastnorm_participant() != self) fail("a nested call has made a block another participant's");
    for (int runs : inner.runs)
        if (runs != 1) fail("a block of a nested call did not run once");
}

void run_block(Task *task, std::ptrdiff_t block) {
    const auto i = std::size_t(block);
    const int self = fastnorm_participant();
    if (self < 0 || self >= std::max(task->num_threads, 1)) fail("there is no such participant");
    if (task->taking_part[self].exchange(true)) fail("a participant runs two blocks at once");
    task->runs[i] += 1;
    if (std::this_thread::get_id() != task->caller) task->helped = true;
    if (task->delay == SHORT) spin_for(1);
    if (task->delay == UNEVEN) spin_for(block % 7 == 0 ? 50 : 0);
    if (task->delay == SLEEPY && block % 5 == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
        std::this_thread::yield();
    }
    if (task->nested && block % 3 == 0) check_nested(block);
    task->output[i] = 3 * task->input[i] + 1;
    task->taking_part[self] = false;
}

// Tasks are used again and again, and outlive every call: a block that comes too late is noticed,
// and not a crash.
void run_one_job(Task &task, std::mt19937 &random) {
    static const int sizes[] = {0, 1, 2, 3, 7, 8, 64, 1000};
    static const int teams[] = {0, 1, 2, 2, 3, 4, 8, 16, 33};
    const auto n = std::size_t(sizes[random() % 8]);
    task.num_threads = teams[random() % 9];
    task.kind = int(random() % 2);
    task.delay = n < 100 && random() % 4 == 0 ? Delay(random() % 4) : NONE;
    task.nested = n < 100 && random() % 8 == 0;
    task.runs.assign(n, 0);
    task.output.assign(n, 0);
    task.input.resize(n);
    for (auto &value : task.input) value = random();

    task.caller = std::this_thread::get_id();
    task.helped = false;
    task.open = true;
    fastnorm_parallel_for(task.kind == 0 ? block_function<0> : block_function<1>, &task,
                          std::ptrdiff_t(n), task.num_threads);
    task.open = false;

    for (std::size_t i = 0; i < n; ++i) {
        if (task.runs[i] == 0) fail("a block did not run");
        if (task.runs[i] > 1) fail("a block ran twice");
        if (task.output[i] != 3 * task.input[i] + 1) fail("the caller does not see a result");
    }
    num_jobs.fetch_add(1, std::memory_order_relaxed);
    num_helped.fetch_add(task.helped, std::memory_order_relaxed);
    if (random() % 64 == 0) spin_for(100);  // now and then the workers fall asleep
}

void run_jobs(unsigned seed, Clock::time_point until) {
    std::mt19937 random(seed);
    std::vector<Task> tasks(16);
    for (std::size_t i = 0; Clock::now() < until; ++i) run_one_job(tasks[i % 16], random);
}

void count_block(void *argument, std::ptrdiff_t block) {
    static_cast<std::atomic<std::uint64_t> *>(argument)->fetch_add(std::uint64_t(block),
                                                                    std::memory_order_relaxed);
}

struct Meeting {
    std::ptrdiff_t last_block;
    std::atomic<bool> last_block_done{false};
    std::atomic<bool> gave_up{false};
};

void meeting_block(void *argument, std::ptrdiff_t block) {
    auto *meeting = static_cast<Meeting *>(argument);
    if (block == meeting->last_block) meeting->last_block_done = true;
    if (block != meeting->last_block - 1) return;
    for (const auto start = Clock::now(); !meeting->last_block_done && !meeting->gave_up;) {
        if (Clock::now() - start > std::chrono::seconds(2)) meeting->gave_up = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

// The last block but one returns only after the last, which the same thread owns: so a worker must
// come, and one thread must take a block of the other's. The pool may once fail to wake a worker,
// but not each time; and it runs all blocks on one thread if the same call was short before, hence
// another number of blocks each time.
void expect_help() {
    static std::ptrdiff_t num_blocks = 3;
    for (int i = 0; i < 5; ++i) {
        Meeting meeting;
        meeting.last_block = num_blocks++ - 1;
        fastnorm_parallel_for(meeting_block, &meeting, meeting.last_block + 1, 2);
        if (!meeting.gave_up) return;
    }
    fail("no worker came, or no thread took the last block");
}

// More blocks than one job can have: the pool runs them as several.
void run_huge_job() {
    const std::uint64_t n = (std::uint64_t(1) << 25) + 1000;
    std::atomic<std::uint64_t> sum{0};
    fastnorm_parallel_for(count_block, &sum, std::ptrdiff_t(n), 2);
    if (sum != n * (n - 1) / 2) fail("a block of a huge job did not run once");
}

// A child starts without workers, makes its own, and exits; at times it has a child itself.
// A child that hangs is killed by its alarm.
void fork_and_run(unsigned seed, int depth) {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child < 0) fail("fork failed");
    if (child == 0) {
        alarm(10);
        if (fastnorm_pool_size() != 0) fail("a forked child has workers before its first call");
        std::mt19937 random(seed);
        std::vector<Task> tasks(4);
        for (std::size_t i = 0; i < 20; ++i) run_one_job(tasks[i % 4], random);
        // A job that surely is threaded, as the child has but this one thread.
        std::atomic<std::uint64_t> sum{0};
        fastnorm_parallel_for(count_block, &sum, 100, 3);
        if (sum != 4950) fail("a block of a child's job did not run once");
        if (fastnorm_pool_size() < 2) fail("a forked child makes no workers");
        if (depth < 2) fork_and_run(seed + 1, depth + 1);
        if (seed % 2) std::exit(0);
        std::_Exit(0);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child) fail("waitpid failed");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail("a forked child failed or hung");
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 2) fail("usage: pool_stress SECONDS");
    const double seconds = std::atof(argv[1]);
    const auto start = Clock::now();
    const auto at = [&](double fraction) {
        return start + std::chrono::microseconds(std::int64_t(1e6 * seconds * fraction));
    };
    if (fastnorm_pool_size() != 0) fail("there are workers before the first call");
    expect_help();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    expect_help();  // now the worker was asleep
    if (!sanitized) run_huge_job();  // there it would take too long

    run_jobs(1, at(0.4));  // one caller: every job may be threaded

    // Several callers, of whom one at a time has the pool, and forks while they are at it.
    std::vector<std::thread> callers;
    for (unsigned seed = 2; seed < 5; ++seed) callers.emplace_back(run_jobs, seed, at(1.0));
    long num_forks = 0;
    while (!sanitized && Clock::now() < at(1.0)) fork_and_run(unsigned(num_forks++), 0);
    for (auto &caller : callers) caller.join();

    // 32 workers for the largest team, unless the system refused some.
    if (fastnorm_pool_size() < 1 || fastnorm_pool_size() > 32) fail("unexpected number of workers");
    std::printf("%ld jobs, %ld of them shared, %ld forks, %d workers\n", num_jobs.load(),
                num_helped.load(), num_forks, fastnorm_pool_size());
    return 0;
}
