"""How tests ask a server that lives in their own process."""

import cv2
import numpy as np
from starlette.testclient import TestClient

from consilium.serving.app import make
from consilium.serving.service import Settings


def client(model, **settings):
    return TestClient(make(model, Settings(**settings)), base_url="http://127.0.0.1")


def post(asked, files, **data):
    return asked.post("/v1/predict", files=[("files", file) for file in files], data=data)


def film(seed=0, size=40):
    """A file of noise, by a name of its own."""
    noise = np.random.default_rng(seed).integers(0, 255, (size, size + 8), np.uint8)
    return f"film{seed}.png", cv2.imencode(".png", noise)[1].tobytes()
