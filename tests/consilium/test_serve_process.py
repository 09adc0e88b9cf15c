"""The serve command: it prints its address, and SIGTERM under load loses no prediction."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
import torch

from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from tests.consilium.untrained import CLASSES, save_checkpoint

CLIENTS, IMAGES = 4, 8
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture
def server(tmp_path):
    """A process that serves an untrained network, and the first line of its output."""
    torch.manual_seed(0)
    module = ImageClassifier(CLASSES, "resnet10t", image_size=128)
    file = save_checkpoint(module, Preprocess(size=128), tmp_path / "runs" / "net" / "best.ckpt")
    command = [sys.executable, "-m", "consilium", "serve", str(file), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})  # fmt: skip
    yield process, process.stdout.readline()
    process.kill()
    process.wait()


def send(port, method, path, body=b"", headers=FORM):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.read()


def request_body(num_images):
    """A form with images of noise that requests saliency maps."""
    rng = np.random.default_rng(0)
    parts = [b'--b\r\nContent-Disposition: form-data; name="saliency_maps"\r\n\r\ntrue\r\n']
    for _ in range(num_images):
        data = cv2.imencode(".png", rng.integers(0, 255, (64, 64), np.uint8))[1].tobytes()
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        parts.append(head + data + b"\r\n")
    return b"".join(parts) + b"--b--\r\n"


def images_in_progress(port):
    text = send(port, "GET", "/metrics")[1].decode()
    return float(re.search(r"^consilium_images_in_progress (\S+)", text, re.MULTILINE)[1])


@pytest.mark.exhaustive
def test_sigterm_under_load_completes_requests_and_accepts_no_more(server):
    process, first_line = server
    port = int(re.search(r"^net: http://127\.0\.0\.1:(\d+)  ", first_line)[1])
    responses, body = [], request_body(IMAGES)
    threads = [
        threading.Thread(target=lambda: responses.append(send(port, "POST", "/v1/predict", body)))
        for _ in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    while images_in_progress(port) + IMAGES * len(responses) < IMAGES * CLIENTS:
        threading.Event().wait(0.02)
    completed_before = len(responses)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert completed_before < CLIENTS
    assert [status for status, _ in responses] == [200] * CLIENTS
    for _, content in responses:
        predictions = json.loads(content)["predictions"]
        assert len(predictions) == IMAGES
        for prediction in predictions:
            assert prediction["saliency_maps"]["ensemble"].startswith("data:image/png")
    assert process.wait(120) == 0
    output = process.stdout.read()
    assert "Research use only. Not a medical device." in output
    assert output.endswith("stopped; no image was stored\n")
    with pytest.raises(ConnectionRefusedError):
        send(port, "GET", "/healthz")
