"""The server under load: latencies, and throughput beside that of the models without a server.

Run: python -m benchmarks.serve [CKPT|ENSEMBLE] [--clients 16] [--seconds 60] [--queue-size 64]
     python -m benchmarks.serve [CKPT|ENSEMBLE] --attack [--seconds 60]
Without a model, an ensemble of two untrained backbones is served. Clients are threads of this
process with one connection each and one image per request; the server is a process of its own. A
third process measures the models alone, before and after, on preprocessed images. On a shared
machine the fraction of time in which the models computed is more reliable than the ratio of
throughputs: its difference from 1 is the cost of the server. With `--attack`, one client sends
request after request alone, and then beside 64 clients that send a body byte by byte or hang up
after their request (every fifth), and 1,000 connections that never complete the head of a request;
each of them connects again about a second after it was closed.
"""

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import wait
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import cv2
import torch

from consilium.inference.export import generated_images
from consilium.inference.predictor import load_predictor
from datamodules.preprocess import Preprocess
from lightning_modules import EnsembleModule, ImageClassifier, checkpoints
from lightning_modules.ensemble import write_ensemble_file

CLASSES = ["none", "simple", "comminuted"]
MEMBERS = {"resnet18": 224, "efficientnet_b0": 192}
ROOT = Path(__file__).parents[1]
BATCH_SIZES = (8, 16)
FORM_TYPE = "multipart/form-data; boundary=b"
FORM = {"Content-Type": FORM_TYPE}
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Responses = list[tuple[int, float]]  # status and seconds


def main() -> None:
    """Prints statuses, latencies and throughput."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or write_ensemble(Path(folder))
        if args.models_only:
            print(json.dumps(time_models(model)))
            return
        if args.attack:
            measure_attack(model, args.seconds)
            return
        before = time_models_in_process(model)
        responses, seconds, busy = measure_server(model, args)
        after = time_models_in_process(model)
    print_report(responses, seconds, [before, after], args.clients)
    print(f"the models computed {busy:.3f} of the time")


def parse_arguments() -> argparse.Namespace:
    """The arguments of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue-size", type=int, default=64, help="of the server (64)")
    parser.add_argument("--attack", action="store_true", help="slow and half-open connections")
    parser.add_argument("--models-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_ensemble(folder: Path) -> Path:
    """Writes an ensemble.json of untrained members."""
    files = []
    for name, size in MEMBERS.items():
        module = ImageClassifier(CLASSES, name, image_size=size)
        content = {"state_dict": module.state_dict()}
        checkpoints.write_block(
            content, module="ImageClassifier", init_args=module.init_args, class_names=CLASSES,
            preprocess=Preprocess(size=size).to_dict(), manifest_digest="", metrics={}, epoch=0,
            train_ids=torch.empty(0, dtype=torch.int64), measured_weights="",
        )  # fmt: skip
        torch.save(content, folder / f"{name}.ckpt")
        files.append(str(folder / f"{name}.ckpt"))
    meta = EnsembleModule(CLASSES, files).metadata()
    write_ensemble_file(folder, CLASSES, meta["members"], meta["voter"])
    return folder / "ensemble.json"


def time_models_in_process(model: Path) -> dict[str, float]:
    """`time_models` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serve", str(model), "--models-only"]
    process = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    timings: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return timings


def time_models(path: Path) -> dict[str, float]:
    """Seconds for one image, and images per second in batches, of preprocessed images."""
    predictor = load_predictor(path)
    inputs = [predictor.preprocess(image) for image in generated_images(max(BATCH_SIZES))]

    def seconds_for(count: int) -> float:
        start = time.perf_counter()
        predictor.predict_batch(inputs[:count], [""] * count)
        return time.perf_counter() - start

    seconds_for(max(BATCH_SIZES))
    single = statistics.median(seconds_for(1) for _ in range(9))
    rates = [n / statistics.median(seconds_for(n) for _ in range(5)) for n in BATCH_SIZES]
    return {"seconds_per_image": single, "images_per_second": max(rates)}


def measure_server(model: Path, args: argparse.Namespace) -> tuple[Responses, float, float]:
    """Responses, total seconds, and the fraction of them in which the models computed."""
    with running_server(model, "--queue-size", str(args.queue_size)) as (port, _):
        clients = Clients(port, args.clients)
        clients.run(5)  # warm-up
        clients.responses.clear()
        start = clients.model_seconds()
        seconds = clients.run(args.seconds)
        busy = clients.model_seconds() - start
    return clients.responses, seconds, busy / seconds


@contextmanager
def running_server(model: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Port and process ID of a server of a model."""
    command = [sys.executable, "-m", "consilium", "serve", str(model), "--port", "0", *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    port = re.search(r":(\d+)  ", server.stdout.readline())
    assert port, "the server did not start"
    try:
        yield int(port[1]), server.pid
    finally:
        server.terminate()
        server.wait()


def measure_attack(model: Path, seconds: float) -> None:
    """Prints the latency of one client and the server's memory, alone and under attack."""
    with running_server(model) as (port, pid):
        client = Clients(port, 1)
        client.run(5)
        for name, is_attacked in (("alone", False), ("under attack", True)):
            memory = memory_mb(pid)
            with attackers(port, client.bodies[0]) if is_attacked else nullcontext():
                client.responses.clear()
                client.run(seconds)
            latencies = sorted(latency for status, latency in client.responses if status == 200)
            p50, p99 = (1000 * latencies[int(q * (len(latencies) - 1))] for q in (0.5, 0.99))
            statuses = dict(Counter(status for status, _ in client.responses))
            print(f"{name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms, statuses {statuses}, "
                  f"{memory_mb(pid) - memory:+.0f} MB")  # fmt: skip


@contextmanager
def attackers(port: int, body: bytes) -> Iterator[None]:
    """Attacks from a process of its own, which does not delay the measured client."""
    context = multiprocessing.get_context("fork")
    is_over = context.Event()
    process = context.Process(target=attack, args=(port, body, is_over))
    process.start()
    try:
        yield
    finally:
        is_over.set()
        process.join()


def attack(port: int, body: bytes, is_over: Event) -> None:
    """Attacks until it is over, and prints the number of connections."""
    clients = Attackers(port, body)
    is_over.wait()
    print(f"connections of the attackers: {clients.stop()}", flush=True)


def memory_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1000


class Attackers:
    """Clients in a thread of their own that keep as many connections as they can."""

    def __init__(self, port: int, body: bytes, slow: int = 64, half_open: int = 1000) -> None:
        self.port, self.body, self.connections = port, body, Counter[str]()
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM_TYPE}\r\n"
        self.head = f"{head}Content-Length: {len(body)}\r\n\r\n".encode()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        kinds = [self._hang_up if k % 5 == 0 else self._send_slowly for k in range(slow)]
        self.tasks = [
            asyncio.run_coroutine_threadsafe(self._repeat(kind), self.loop)
            for kind in [*kinds, *[self._stay_silent] * half_open]
        ]

    def stop(self) -> dict[str, int]:
        """Ends all connections; the number of those that were made, by kind."""
        for task in self.tasks:
            task.cancel()
        wait(self.tasks)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        return dict(self.connections)

    async def _repeat(self, attack: Callable[..., Coroutine[Any, Any, None]]) -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                self.connections[attack.__name__.strip("_")] += 1
                await attack(reader, writer)
                writer.close()
            await asyncio.sleep(random.uniform(0.5, 1.5))

    async def _stay_silent(self, reader: Reader, writer: Writer) -> None:
        writer.write(self.head[:40])
        await reader.read()

    async def _send_slowly(self, reader: Reader, writer: Writer) -> None:
        writer.write(self.head)
        for byte in self.body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.2)

    async def _hang_up(self, reader: Reader, writer: Writer) -> None:
        writer.write(self.head + self.body)
        await writer.drain()


class Clients:
    """Clients that send one request after another; after a 503 they wait as the server asks."""

    def __init__(self, port: int, count: int) -> None:
        self.port, self.count = port, count
        self.responses: Responses = []
        files = [cv2.imencode(".png", image)[1].tobytes() for image in generated_images(16)]
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        self.bodies = [head + file + b"\r\n--b--\r\n" for file in files]

    def model_seconds(self) -> float:
        """Seconds that the models of the server have computed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        match = re.search(r"^consilium_model_seconds_total (\S+)", text, re.MULTILINE)
        return float(match[1]) if match else 0.0

    def run(self, seconds: float) -> float:
        """Sends requests for so long; returns the seconds until the last response."""
        start = time.perf_counter()
        threads = [
            threading.Thread(target=self._send, args=(index, start + seconds))
            for index in range(self.count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    def _send(self, index: int, end: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        body = self.bodies[index % len(self.bodies)]
        while time.perf_counter() < end:
            start = time.perf_counter()
            connection.request("POST", "/v1/predict", body, FORM)
            response = connection.getresponse()
            response.read()
            self.responses.append((response.status, time.perf_counter() - start))
            if response.status == 503:
                remaining = max(end - time.perf_counter() + 0.1, 0.0)
                time.sleep(min(float(response.headers["Retry-After"]), remaining))


def print_report(
    responses: Responses, seconds: float, without_server: list[dict[str, float]], clients: int
) -> None:
    """Prints statuses, latencies and throughput beside the timings before and after the test."""
    latencies = sorted(latency for status, latency in responses if status == 200)
    print(f"{clients} clients, {seconds:.0f} s, {torch.get_num_threads()} threads")
    print(f"statuses: {dict(Counter(status for status, _ in responses))}")
    for quantile in (0.5, 0.95, 0.99):
        latency = latencies[int(quantile * (len(latencies) - 1))]
        print(f"p{100 * quantile:.0f} {1000 * latency:.0f} ms")
    single = [1000 * timing["seconds_per_image"] for timing in without_server]
    print(f"models alone, one image: {single[0]:.0f} ms before, {single[1]:.0f} ms after")
    rate = len(latencies) / seconds
    rates = [timing["images_per_second"] for timing in without_server]
    print(f"models alone, best of batches of {BATCH_SIZES}: {rates[0]:.1f} images/s before, "
          f"{rates[1]:.1f} after")  # fmt: skip
    ratio = rate / statistics.mean(rates)
    print(f"server: {rate:.1f} images/s, {ratio:.2f} of the models alone")


if __name__ == "__main__":
    main()
