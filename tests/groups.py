"""Groups for tests: members that are threads of this process."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np


class Threads:
    """A group of `size` threads; member i has number i."""

    def __init__(self, size, timeout=20):
        self.size, self.timeout = size, timeout
        self.changed = threading.Condition()
        self.rounds = []  # of each exchange the arrays by member
        self.broken = False

    def member(self, rank):
        return Member(self, rank)

    def give_up(self):
        with self.changed:
            self.broken = True
            self.changed.notify_all()

    def exchange(self, rank, number, array):
        with self.changed:
            if number == len(self.rounds):
                self.rounds.append({})
            given = self.rounds[number]
            given[rank] = array
            self.changed.notify_all()
            self.changed.wait_for(lambda: len(given) == self.size or self.broken, self.timeout)
            if len(given) < self.size:
                raise ConnectionError("a member is gone")
            return [given[i] for i in range(self.size)]


class Member:
    def __init__(self, threads, rank):
        self.threads, self.rank, self.exchanges = threads, rank, 0

    def allgather(self, array):
        arrays = self.threads.exchange(self.rank, self.exchanges, array)
        self.exchanges += 1
        return np.stack(arrays) if len({a.shape for a in arrays}) == 1 else arrays


def together(size, function, timeout=20):
    """``function(member)`` in a thread for each member; the results, or what was raised."""
    threads = Threads(size, timeout)

    def run(rank):
        try:
            return function(threads.member(rank))
        except BaseException as error:
            threads.give_up()
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
