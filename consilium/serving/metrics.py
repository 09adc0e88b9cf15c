"""Counts and durations in Prometheus' own text."""

import threading
from collections import defaultdict

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16)
HELP = {
    "consilium_requests_total": ("counter", "requests by path and status"),
    "consilium_pictures_total": ("counter", "pictures answered"),
    "consilium_request_seconds": ("histogram", "from a request's head to its answer"),
    "consilium_batch_pictures": ("histogram", "pictures that went through the models together"),
    "consilium_models_seconds_total": ("counter", "seconds in which the models worked"),
    "consilium_places_taken": ("gauge", "pictures inside, waiting or looked at"),
    "consilium_places": ("gauge", "pictures that may be inside"),
}


class Meter:
    """Counters and histograms that any thread may add to."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, name: str, value: float = 1, labels: str = "") -> None:
        """Adds to a counter."""
        with self._lock:
            self._values[name, labels] += value

    def observe(self, name: str, value: float, ends: tuple[float, ...]) -> None:
        """Adds one value to a histogram whose bins end at `ends`."""
        for end in (*ends, float("inf")):
            bound = "+Inf" if end == float("inf") else f"{end:g}"
            self.add(f"{name}_bucket", value <= end, f'le="{bound}"')
        self.add(f"{name}_sum", value)
        self.add(f"{name}_count")

    def text(self, others: dict[str, float]) -> str:
        """Everything, one family after another."""
        with self._lock:
            values = [*self._values.items(), *(((name, ""), v) for name, v in others.items())]
        lines = []
        for family, (kind, about) in HELP.items():
            lines += [f"# HELP {family} {about}", f"# TYPE {family} {kind}"]
            for (name, labels), value in values:
                if name == family or name.removeprefix(family) in ("_bucket", "_sum", "_count"):
                    lines.append(f"{name}{{{labels}}} {value:g}" if labels else f"{name} {value:g}")
        return "\n".join(lines) + "\n"
