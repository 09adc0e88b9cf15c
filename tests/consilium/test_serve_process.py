"""The command itself: it says where it answers, and SIGTERM under load loses nobody's answer."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from tests.consilium.saved import CLASSES, saved

ROOT = Path(__file__).parents[2]
CALLERS, PICTURES = 4, 8
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture
def server(tmp_path):
    """A process that serves an untrained network, and its port."""
    module = ImageClassifier(CLASSES, "resnet10t", image_size=128)
    file = saved(module, Preprocess(size=128), tmp_path / "runs" / "net" / "best.ckpt")
    words = [sys.executable, "-m", "consilium", "serve", str(file), "--port", "0"]
    torch.manual_seed(0)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})  # fmt: skip
    first = process.stdout.readline()
    yield process, first
    process.kill()
    process.wait()


def asked(port, method, path, body=b"", headers=FORM):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    return reply.status, reply.read()


def request_of(pictures):
    """A form of noise pictures that asks for maps."""
    dice = np.random.default_rng(0)
    parts = [b'--b\r\nContent-Disposition: form-data; name="maps"\r\n\r\ntrue\r\n']
    for _ in range(pictures):
        data = cv2.imencode(".png", dice.integers(0, 255, (64, 64), np.uint8))[1].tobytes()
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        parts.append(head + data + b"\r\n")
    return b"".join(parts) + b"--b--\r\n"


def inside(port):
    text = asked(port, "GET", "/metrics")[1].decode()
    return int(re.search(r"^consilium_places_taken (\d+)", text, re.M)[1])


def test_sigterm_under_load_answers_what_is_in_flight_and_takes_no_more(server):
    process, first = server
    port = int(re.search(r"^net: http://127\.0\.0\.1:(\d+)  ", first)[1])
    found, body = [], request_of(PICTURES)
    threads = [
        threading.Thread(target=lambda: found.append(asked(port, "POST", "/v1/predict", body)))
        for _ in range(CALLERS)
    ]
    for thread in threads:
        thread.start()
    while inside(port) + PICTURES * len(found) < PICTURES * CALLERS:
        threading.Event().wait(0.02)
    answered_before = len(found)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert answered_before < CALLERS
    assert [status for status, _ in found] == [200] * CALLERS
    for _, said in found:
        answers = json.loads(said)["answers"]
        assert len(answers) == PICTURES
        assert all(answer["maps"]["ensemble"].startswith("data:image/png") for answer in answers)
    assert process.wait(120) == 0
    rest = process.stdout.read()
    assert "Research use only. Not a medical device." in rest
    assert rest.endswith("stopped; nothing was kept\n")
    with pytest.raises(ConnectionRefusedError):
        asked(port, "GET", "/healthz")
