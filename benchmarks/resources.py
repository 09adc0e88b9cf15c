"""Time and memory that a process uses."""

import resource
import time


class Stopwatch:
    """Wall-clock and processor seconds since its creation."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    @property
    def wall(self) -> float:
        """Wall-clock seconds."""
        return time.perf_counter() - self._wall

    @property
    def processor(self) -> float:
        """Processor seconds of this process."""
        return time.process_time() - self._processor


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
