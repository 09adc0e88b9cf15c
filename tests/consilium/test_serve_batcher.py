"""The queue in front of the models: limits, batches, timeouts and errors."""

import asyncio
import re
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from fastapi import HTTPException, Request
from starlette.testclient import TestClient

from consilium.inference.predictor import Predictor
from consilium.serving import upload
from consilium.serving.schemas import PreparedImage
from consilium.serving.server import create_app
from consilium.serving.service import Batcher, ServerSettings
from consilium.serving.upload import UploadLimits
from tests.consilium.serving import decode_gray, image_file, open_client, post_images


@dataclass(frozen=True)
class BlockedPredictor(Predictor):
    """A predictor that waits until `released` is set."""

    released: threading.Event = field(default_factory=threading.Event)

    def predict_batch(self, inputs, groups):
        assert self.released.wait(60)
        return super().predict_batch(inputs, groups)


class FailsForKnee(BlockedPredictor):
    """Raises if an image of the batch is of the group `knee`."""

    def predict_batch(self, inputs, groups):
        probabilities = super().predict_batch(inputs, groups)
        if "knee" in groups:
            raise ValueError("a knee")
        return probabilities


def replace_class(cls, predictor):
    return cls(predictor.members, predictor.ensemble, predictor.device)


@pytest.fixture
def blocked(predictor):
    return replace_class(BlockedPredictor, predictor)


def run_in_threads(count, function):
    results = []
    threads = [threading.Thread(target=lambda: results.append(function())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


def wait_until(condition):
    """Waits for something that another thread does."""
    for _ in range(6000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("the condition was not met within a minute")


def images_in_progress(client):
    text = client.get("/metrics").text
    return float(re.search(r"^consilium_images_in_progress (\S+)", text, re.MULTILINE)[1])


def test_full_server_refuses_requests_and_tells_when_to_retry(blocked):
    with open_client(blocked, queue_size=3) as client:
        threads, responses = run_in_threads(3, lambda: post_images(client, [image_file()]))
        wait_until(lambda: images_in_progress(client) == 3)
        refused = post_images(client, [image_file()])
        blocked.released.set()
        for thread in threads:
            thread.join()
        assert images_in_progress(client) == 0
        later = post_images(client, [image_file()])
        too_many = post_images(client, [image_file(k) for k in range(4)])
    assert refused.status_code == too_many.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "the server is full; try again in" in refused.json()["detail"]
    assert [response.status_code for response in [*responses, later]] == [200] * 4


def test_late_prediction_is_a_503_and_the_next_request_is_predicted(blocked):
    with open_client(blocked, limits=UploadLimits(timeout=0.3)) as client:
        late = post_images(client, [image_file()])
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert late.json()["detail"] == "no prediction within 0.3 s; try again in 1 s"
        blocked.released.set()
        wait_until(lambda: post_images(client, [image_file()]).status_code == 200)


def test_body_that_does_not_arrive_ends_with_a_timeout():
    async def never():
        await asyncio.sleep(600)

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, never)
    with pytest.raises(HTTPException, match=r"408: the body took too long: more than 0\.05 s"):
        asyncio.run(upload.read_form(request, UploadLimits(timeout=0.05), lambda size: None))


def prepared(predictor, group=""):
    name, data = image_file()
    inputs = predictor.preprocess(decode_gray(data))
    return PreparedImage(name, inputs, np.zeros((4, 4), np.uint8), 4, 4, group, False)


def test_waiting_images_form_one_batch(blocked):
    sizes = []
    batcher = Batcher(blocked, max_batch=4, on_batch=sizes.append)
    image = prepared(blocked)
    first = batcher.submit(image)
    wait_until(lambda: sizes == [1])
    futures = [batcher.submit(image) for _ in range(7)]
    assert futures[2].cancel()
    blocked.released.set()
    batcher.close()
    assert sizes == [1, 3, 3]
    expected = first.result().probabilities
    for future in (*futures[:2], *futures[3:]):
        assert future.result().probabilities == pytest.approx(expected, abs=1e-6)


def test_error_of_one_image_does_not_affect_others_of_its_batch(predictor):
    sizes = []
    failing = replace_class(FailsForKnee, predictor)
    batcher = Batcher(failing, on_batch=sizes.append)
    futures = [batcher.submit(prepared(failing))]
    wait_until(lambda: sizes == [1])
    futures += [batcher.submit(prepared(failing, group)) for group in ("", "knee", "")]
    failing.released.set()
    batcher.close()
    assert sizes == [1, 3]
    assert str(futures[2].exception()) == "a knee"
    expected = futures[0].result().probabilities
    for index in (1, 3):
        assert futures[index].result().probabilities == pytest.approx(expected, abs=1e-6)


def test_error_of_the_models_is_a_500_and_the_next_request_is_predicted(predictor):
    class FailsOnce(Predictor):
        calls = 0

        def predict_batch(self, inputs, groups):
            type(self).calls += 1
            if type(self).calls == 1:
                raise RuntimeError("out of memory")
            return super().predict_batch(inputs, groups)

    app = create_app(replace_class(FailsOnce, predictor), ServerSettings())
    url = "http://127.0.0.1"
    with TestClient(app, base_url=url, raise_server_exceptions=False) as client:
        assert post_images(client, [image_file()]).status_code == 500
        assert post_images(client, [image_file()]).status_code == 200
