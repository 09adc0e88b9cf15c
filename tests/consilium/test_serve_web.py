"""What the web around the models lets in, and what it says of itself."""

import re
from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from consilium.serving.upload import shown
from datamodules.images import read
from tests.consilium.saved import CLASSES
from tests.consilium.served import client, film, post


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        ({"frame": "-1"}, 400, "frame is '-1'; it must be a number from 0"),
        ({"frame": "7"}, 422, "film0.png: frame is 7; the file has the frames 0 to 0"),
        ({"maps": "yes"}, 400, "maps is 'yes'; it must be true or false"),
        ({"path": "/etc/passwd"}, 400, "field 'path': allowed are the files `files`"),
    ],
)
def test_fields_are_checked(served_model, data, status, words):
    with client(served_model) as asked:
        reply = post(asked, [film()], **data)
    assert (reply.status_code, words in reply.json()["detail"]) == (status, True)


def test_a_token_locks_everything_but_health_and_the_bare_page(served_model, tmp_path):
    (tmp_path / "film.png").write_bytes(film()[1])
    examples = [tmp_path / "film.png"]
    with client(served_model, token="s3cret", examples=examples) as asked:
        locked = ["/v1/model", "/metrics", "/examples/0", "/examples/0/thumbnail"]
        assert [asked.get(path).status_code for path in locked] == [401] * 4
        assert post(asked, [film()]).status_code == 401
        assert [asked.get(path).status_code for path in ("/", "/healthz")] == [200, 200]
        for given, status in (("s3cret", 200), ("s3cre", 401), ("s3cretx", 401), ("é", 401)):
            headers = {"Authorization": f"Bearer {given}".encode()}
            assert asked.get("/v1/model", headers=headers).status_code == status


def test_only_the_names_of_this_machine_are_answered_unless_told_otherwise(served_model):
    with client(served_model) as asked:
        assert asked.get("/healthz", headers={"Host": "evil.example"}).status_code == 400
        assert asked.get("/healthz", headers={"Host": "localhost:8000"}).status_code == 200
    with client(served_model, hosts=[]) as asked:
        assert asked.get("/healthz", headers={"Host": "ward.example"}).status_code == 200


def test_what_it_is_and_how_to_ask_is_said_without_help_from_elsewhere(served_model):
    with client(served_model, refer_below=0.9) as asked:
        facts = asked.get("/v1/model").json()
        pages = {path: asked.get(path) for path in ("/", "/docs")}
        schema = asked.get("/openapi.json").json()
    assert facts["class_names"] == CLASSES
    assert [m["weights"] for m in facts["members"]] == [m.weights for m in served_model.members]
    assert (facts["calibrated"], facts["refer_below"], facts["maps"]) == (False, 0.9, True)
    assert {"/v1/predict", "/v1/model", "/healthz", "/metrics"} == set(schema["paths"])
    for path, reply in pages.items():
        assert "Research use only. Not a medical device." in reply.text
        links = re.findall(r"""(?:https?:)?//[\w.]+""", reply.text.replace("&#x27;", ""))
        assert {link for link in links if "127.0.0.1" not in link} == set(), path
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
    for path in schema["paths"]:
        assert path in pages["/docs"].text


def test_metrics_count_requests_pictures_and_batches(served_model):
    with client(served_model) as asked:
        post(asked, [film(0), film(1), film(2)])
        post(asked, [("x.png", b"x")])
        lines = asked.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['consilium_requests_total{path="/v1/predict",status="200"}'] == "1"
    assert values['consilium_requests_total{path="/v1/predict",status="415"}'] == "1"
    assert values["consilium_pictures_total"] == values["consilium_batch_pictures_sum"] == "3"
    assert values['consilium_request_seconds_bucket{le="+Inf"}'] == "2"
    assert values["consilium_request_seconds_count"] == "2"
    assert 0 < float(values["consilium_models_seconds_total"]) < 600


@dataclass
class Named:
    shown: str
    given: str


@pytest.mark.parametrize(
    "name",
    [
        Named("passwd", "../../etc/passwd"),
        Named("evil.png", "C:\\temp\\evil.png"),
        Named("ab.png", "a\x00\x1bb.png"),
        Named("picture", "/"),
        Named("x" * 80, "x" * 5000),
    ],
)
def test_a_name_is_only_a_label(served_model, name):
    assert shown(name.given) == name.shown


def test_frames_are_named_by_a_field_and_never_by_the_file(served_model, tmp_path, monkeypatch):
    pages = [np.full((40, 40), value, np.uint8) for value in (10, 200)]
    cv2.imwritemulti(str(tmp_path / "two.tif"), pages)
    data = (tmp_path / "two.tif").read_bytes()
    monkeypatch.chdir(tmp_path)
    with client(served_model) as asked:
        refused = post(asked, [("two.tif#1", data)])
        second = post(asked, [("two.tif", data)], frame="1").json()["answers"][0]
    assert refused.status_code == 422
    assert "2 frames; name one by its number" in refused.json()["detail"]
    expected = served_model.ask(read("two.tif#1"))[-1]
    assert list(second["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
