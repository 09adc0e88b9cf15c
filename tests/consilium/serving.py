"""Requests to a server in the process of the test."""

import cv2
import numpy as np
from starlette.testclient import TestClient

from consilium.serving.server import create_app
from consilium.serving.service import ServerSettings


def open_client(predictor, **settings):
    app = create_app(predictor, ServerSettings(**settings))
    return TestClient(app, base_url="http://127.0.0.1")


def post_images(client, files, **fields):
    return client.post("/v1/predict", files=[("files", file) for file in files], data=fields)


def image_file(seed=0, size=40):
    """Name and content of a PNG file of noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (size, size + 8), np.uint8)
    return f"image{seed}.png", cv2.imencode(".png", noise)[1].tobytes()


def decode_gray(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
