"""The application on top of the libraries: commands, experiments, inference, serving."""

import ctypes
import platform
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of a source tree, or site-packages
PACKAGED_CONFIGS = Path(__file__).resolve().with_name("configs")
IS_INSTALLED = PACKAGED_CONFIGS.is_dir()
CONFIGS = PACKAGED_CONFIGS if IS_INSTALLED else ROOT / "configs"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
MAX_FREE_BYTES = 2**29  # at the end of the heap


def reuse_freed_memory() -> None:
    """Lets the C library keep the memory of freed tensors for the next ones.

    By default it returns blocks of more than 32 MiB to the system, which clears them anew: on a
    CPU that takes up to half of the time of a network. Only glibc needs this.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2 * MAX_FREE_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, MAX_FREE_BYTES)
