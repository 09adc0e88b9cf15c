"""How torch's threads wait for each other."""

import os


def sleep_soon() -> None:
    """Lets them spin for a moment before they sleep; to be called before torch is loaded.

    Threads that spin for long slow a machine with other work down tenfold; threads that sleep at
    once slow an idle one down by a quarter. Only GNU's can be told how long, others sleep at once.
    What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
