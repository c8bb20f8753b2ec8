"""threadpoolctl, where it is installed, sees the thread pool and limits it.

It knows a library by its file and one of its symbols:
https://github.com/joblib/threadpoolctl#implement-support-for-a-custom-library
"""

from threadpoolctl import LibController, register

from . import _threads


class _Controller(LibController):
    user_api = "fastnorm"
    internal_api = "fastnorm"
    filename_prefixes = ("_pool",)
    check_symbols = ("fastnorm_pool_size",)

    def get_num_threads(self):
        return _threads.for_the_process()

    def set_num_threads(self, num_threads):
        _threads.set_num_threads(num_threads)

    def get_version(self):
        from . import __version__

        return __version__


register(_Controller)
