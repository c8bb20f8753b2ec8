"""threadpoolctl, where it is installed, sees the thread pool and limits it.

It knows a library by its file and one of its symbols:
https://github.com/joblib/threadpoolctl#implement-support-for-a-custom-library
"""

from threadpoolctl import LibController, register

from . import _threads


class _Controller(LibController):  # type: ignore[misc] # threadpoolctl has no types
    user_api = "fastnorm"
    internal_api = "fastnorm"
    filename_prefixes = ("_pool",)
    check_symbols = ("fastnorm_pool_size",)

    def get_num_threads(self) -> int:
        return _threads.for_the_process()

    def set_num_threads(self, num_threads: int) -> None:
        _threads.set_num_threads(num_threads)

    def get_version(self) -> str:
        from . import __version__

        return __version__


register(_Controller)
