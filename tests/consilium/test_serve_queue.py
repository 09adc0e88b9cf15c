"""The queue before the models: places, batches, time limits, faults."""

import asyncio
import re
import threading

import cv2
import numpy as np
import pytest
from fastapi import HTTPException, Request
from starlette.testclient import TestClient

from consilium.inference.predictor import Model
from consilium.serving import upload
from consilium.serving.app import make
from consilium.serving.batcher import Desk
from consilium.serving.schemas import Asked
from consilium.serving.service import Settings
from consilium.serving.upload import Limits
from tests.consilium.served import client, film, post


class Held(Model):
    """A model that answers when it is let."""

    let: threading.Event

    def answer(self, seen, parts):
        assert self.let.wait(60)
        return super().answer(seen, parts)


@pytest.fixture
def held(served_model):
    slow = Held(served_model.members, served_model.ensemble, served_model.device)
    object.__setattr__(slow, "let", threading.Event())
    return slow


def in_threads(count, act):
    found = []
    threads = [threading.Thread(target=lambda: found.append(act())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, found


def until(true):
    """Waits for something that another thread does."""
    for _ in range(6000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen within a minute")


def taken(asked):
    return int(re.search(r"^consilium_places_taken (\d+)", asked.get("/metrics").text, re.M)[1])


def test_who_finds_no_place_is_told_when_to_come_again(held):
    with client(held, places=3) as asked:
        threads, found = in_threads(3, lambda: post(asked, [film()]))
        until(lambda: taken(asked) == 3)
        refused = post(asked, [film()])
        held.let.set()
        for thread in threads:
            thread.join()
        assert taken(asked) == 0
        after, many = post(asked, [film()]), post(asked, [film(k) for k in range(4)])
    assert refused.status_code == many.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "all places are taken" in refused.json()["detail"]
    assert [reply.status_code for reply in [*found, after]] == [200] * 4


def test_an_answer_that_does_not_come_in_time_is_a_503_and_the_next_is_answered(held):
    with client(held, limits=Limits(seconds=0.3)) as asked:
        late = post(asked, [film()])
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert late.json()["detail"] == "no answer within 0.3 s; try again in 1 s"
        held.let.set()
        until(lambda: post(asked, [film()]).status_code == 200)


def test_a_body_that_does_not_come_is_not_waited_for():
    async def never():
        await asyncio.sleep(600)

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, never)
    with pytest.raises(HTTPException, match=r"408: the body took more than 0\.05 s"):
        asyncio.run(upload.read(request, Limits(seconds=0.05)))


def test_what_waits_goes_through_the_models_together(held):
    sizes = []
    desk = Desk(held, together=4, seen=sizes.append)
    asked = wanted(held)
    first = desk.submit(asked)
    until(lambda: sizes == [1])
    futures = [desk.submit(asked) for _ in range(7)]
    assert futures[2].cancel()
    held.let.set()
    desk.close()
    assert sizes == [1, 3, 3]
    expected = first.result().probabilities
    for future in (*futures[:2], *futures[3:]):
        assert future.result().probabilities == pytest.approx(expected, abs=1e-6)


def wanted(model, part=""):
    name, data = film()
    seen = model.prepare(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))
    return Asked(name, seen, np.zeros((4, 4), np.uint8), 4, 4, part, False)


def test_one_callers_fault_costs_those_who_wait_beside_it_nothing(held):
    class Picky(Held):
        def answer(self, seen, parts):
            found = super().answer(seen, parts)
            if "knee" in parts:
                raise ValueError("a knee")
            return found

    picky, sizes = Picky(held.members, held.ensemble, held.device), []
    object.__setattr__(picky, "let", held.let)
    desk = Desk(picky, seen=sizes.append)
    futures = [desk.submit(wanted(held))]
    until(lambda: sizes == [1])
    futures += [desk.submit(wanted(held, part)) for part in ("", "knee", "")]
    held.let.set()
    desk.close()
    assert sizes == [1, 3]
    assert str(futures[2].exception()) == "a knee"
    expected = futures[0].result().probabilities
    for at in (1, 3):
        assert futures[at].result().probabilities == pytest.approx(expected, abs=1e-6)


def test_a_fault_of_the_models_is_the_callers_answer_and_not_the_end(served_model):
    class Faulty(Model):
        calls = 0

        def answer(self, seen, parts):
            type(self).calls += 1
            if type(self).calls == 1:
                raise RuntimeError("no memory")
            return super().answer(seen, parts)

    faulty = Faulty(served_model.members, served_model.ensemble, served_model.device)
    app = make(faulty, Settings())
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as asked:
        assert post(asked, [film()]).status_code == 500
        assert post(asked, [film()]).status_code == 200
