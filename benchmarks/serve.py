"""The server under load: latencies and throughput beside what the models reach without it.

Run: python -m benchmarks.serve [CKPT|ENSEMBLE] [--clients 16] [--seconds 60] [--queue 64]
Without a model an ensemble of two untrained backbones is made. Clients are threads of this process,
each with one connection and one picture a request; the server is a process of its own, and the
models' own time is taken in a third, alone, before and after, of pictures prepared beforehand. On a
machine that others use the share of the time in which the models worked says more than the ratio of
throughputs: what is missing to 1 is what the server costs.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import torch

from consilium.inference.export import generated_images
from consilium.inference.predictor import load_predictor
from datamodules.preprocess import Preprocess
from evaluation.files import write_json
from lightning_modules import ImageClassifier, checkpoints

CLASSES = ["none", "simple", "comminuted"]
MEMBERS = {"resnet18": 224, "efficientnet_b0": 192}
ROOT = Path(__file__).parents[1]
BATCHES = (8, 16)
Seen = list[tuple[int, float]]
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def main() -> None:
    """Prints everything."""
    asked = arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = asked.model or ensemble(Path(folder))
        if asked.bare:
            print(json.dumps(bare(model)))
            return
        before = alone(model)
        seen, seconds, busy = loaded(model, asked)
        after = alone(model)
    report(seen, seconds, [before, after], asked.clients)
    print(f"the models worked {busy:.3f} of the time")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue", type=int, default=64, help="places of the server (64)")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def ensemble(folder: Path) -> Path:
    """An ensemble.json of untrained members."""
    said: dict[str, object] = {"format": 1, "class_names": CLASSES, "voter": {"name": "soft"}}
    members = {}
    for name, size in MEMBERS.items():
        module = ImageClassifier(CLASSES, name, image_size=size)
        content = {"state_dict": module.state_dict()}
        checkpoints.write_block(
            content, module="ImageClassifier", init_args=module.init_args, class_names=CLASSES,
            preprocess=Preprocess(size=size).to_dict(), manifest_digest="", metrics={}, epoch=0,
            train_ids=checkpoints.id_hashes([]), measured_weights="",
        )  # fmt: skip
        torch.save(content, folder / f"{name}.ckpt")
        weights = checkpoints.read(folder / f"{name}.ckpt")[0].weights
        members[name] = {"path": f"{name}.ckpt", "weights": weights}
    write_json(folder / "ensemble.json", {**said, "members": members})
    return folder / "ensemble.json"


def alone(model: Path) -> dict[str, float]:
    """Seconds of the models without a server, in a process of their own."""
    words = [sys.executable, "-m", "benchmarks.serve", str(model), "--bare"]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def bare(path: Path) -> dict[str, float]:
    """Seconds of one picture alone and pictures a second in batches, prepared beforehand."""
    model = load_predictor(path)
    seen = [model.prepare(picture) for picture in generated_images(max(BATCHES))]

    def spent(count: int) -> float:
        start = time.perf_counter()
        model.answer(seen[:count], [""] * count)
        return time.perf_counter() - start

    spent(max(BATCHES))
    one = statistics.median(spent(1) for _ in range(9))
    rates = [size / statistics.median(spent(size) for _ in range(5)) for size in BATCHES]
    return {"one": one, "rate": max(rates)}


def loaded(model: Path, asked: argparse.Namespace) -> tuple[Seen, float, float]:
    """Status and seconds of every request, how long it all took, and the models' share of it."""
    words = [sys.executable, "-m", "consilium", "serve", str(model), "--port", "0",
             "--queue", str(asked.queue)]  # fmt: skip
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONUNBUFFERED": "1"})  # fmt: skip
    assert server.stdout is not None
    port = re.search(r":(\d+)  ", server.stdout.readline())
    assert port, "the server did not start"
    crowd = Crowd(int(port[1]), asked.clients)
    try:
        crowd.run(5)  # not counted
        crowd.seen.clear()
        before = crowd.busy()
        seconds = crowd.run(asked.seconds)
        busy = crowd.busy() - before
    finally:
        server.terminate()
        server.wait()
    return crowd.seen, seconds, busy / seconds


class Crowd:
    """Clients that ask again as soon as they are answered; after a 503 they wait as told."""

    def __init__(self, port: int, clients: int) -> None:
        self.port, self.clients = port, clients
        self.seen: Seen = []
        pictures = [cv2.imencode(".png", picture)[1].tobytes() for picture in generated_images(16)]
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        self.bodies = [head + picture + b"\r\n--b--\r\n" for picture in pictures]

    def busy(self) -> float:
        """Seconds that the server's models have worked."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        found = re.search(r"^consilium_models_seconds_total (\S+)", text, re.M)
        return float(found[1]) if found else 0.0

    def run(self, seconds: float) -> float:
        """Asks for so long, and returns how long it was until the last answer."""
        start = time.perf_counter()
        threads = [
            threading.Thread(target=self._ask, args=(at, start + seconds))
            for at in range(self.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    def _ask(self, at: int, end: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while time.perf_counter() < end:
            start = time.perf_counter()
            connection.request("POST", "/v1/predict", self.bodies[at % len(self.bodies)], FORM)
            reply = connection.getresponse()
            reply.read()
            self.seen.append((reply.status, time.perf_counter() - start))
            if reply.status == 503:
                rest = end - time.perf_counter() + 0.1
                time.sleep(min(float(reply.headers["Retry-After"]), max(rest, 0.0)))


def report(seen: Seen, seconds: float, alone: list[dict[str, float]], clients: int) -> None:
    """Statuses, latencies and throughput."""
    waits = sorted(spent for status, spent in seen if status == 200)
    print(f"{clients} clients, {seconds:.0f} s, {torch.get_num_threads()} threads")
    print(f"statuses: {dict(Counter(status for status, _ in seen))}")
    for share in (0.5, 0.95, 0.99):
        print(f"p{100 * share:.0f} {1000 * waits[int(share * (len(waits) - 1))]:.0f} ms")
    one = [1000 * each["one"] for each in alone]
    print(f"models alone, one picture: {one[0]:.0f} ms before, {one[1]:.0f} ms after")
    rate, rates = len(waits) / seconds, [each["rate"] for each in alone]
    print(f"models alone, the better of batches of {BATCHES}: {rates[0]:.1f} pictures/s before, "
          f"{rates[1]:.1f} after")  # fmt: skip
    print(f"server: {rate:.1f} pictures/s, {rate / statistics.mean(rates):.2f} of the models alone")


if __name__ == "__main__":
    main()
