"""The web application: fields, token, host names, page, metrics and file names."""

import re

import cv2
import numpy as np
import pytest

from consilium.serving.upload import display_name
from datamodules.images import read_image
from tests.consilium.serving import image_file, open_client, post_images
from tests.consilium.untrained import CLASSES


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"frame": "-1"}, 400, "frame is '-1'; it must be a whole number from 0"),
        ({"frame": "7"}, 422, "image0.png: frame is 7; "),
        ({"saliency_maps": "yes"}, 400, "saliency_maps is 'yes'; it must be true or false"),
        ({"path": "/etc/passwd"}, 400, "field 'path' is not allowed; allowed are the files"),
    ],
)
def test_invalid_fields_are_refused(predictor, fields, status, message):
    with open_client(predictor) as client:
        response = post_images(client, [image_file()], **fields)
    assert response.status_code == status
    assert message in response.json()["detail"]


def test_token_protects_everything_but_health_and_the_empty_page(predictor, tmp_path):
    (tmp_path / "image.png").write_bytes(image_file()[1])
    examples = [tmp_path / "image.png"]
    with open_client(predictor, token="s3cret", examples=examples) as client:
        protected = ["/v1/model", "/metrics", "/examples/0", "/examples/0/thumbnail"]
        assert [client.get(path).status_code for path in protected] == [401] * 4
        assert post_images(client, [image_file()]).status_code == 401
        assert [client.get(path).status_code for path in ("/", "/healthz")] == [200, 200]
        for token, status in (("s3cret", 200), ("s3cre", 401), ("s3cretx", 401), ("é", 401)):
            headers = {"Authorization": f"Bearer {token}".encode()}
            assert client.get("/v1/model", headers=headers).status_code == status


@pytest.mark.parametrize("token", ["s3cret", "schlüssel", "鍵"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_a_token_of_any_characters_is_accepted_with_any_case_of_its_scheme(
    predictor, token, scheme
):
    with open_client(predictor, token=token) as client:
        headers = {"Authorization": f"{scheme} {token}".encode()}
        assert client.get("/v1/model", headers=headers).status_code == 200


def test_an_example_that_was_deleted_is_not_found(predictor, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(image_file()[1])
    with open_client(predictor, examples=[file]) as client:
        file.unlink()
        responses = [client.get(f"/examples/0{rest}") for rest in ("", "/thumbnail")]
    assert [response.status_code for response in responses] == [404, 404]
    assert responses[0].json() == {"detail": "example 0 was deleted after the server was started"}


def test_only_host_names_of_this_machine_are_allowed_by_default(predictor):
    with open_client(predictor) as client:
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 400
        assert client.get("/healthz", headers={"Host": "localhost:8000"}).status_code == 200
    with open_client(predictor, hosts=[]) as client:
        assert client.get("/healthz", headers={"Host": "ward.example"}).status_code == 200


def test_model_page_and_schema_are_served_without_other_servers(predictor):
    with open_client(predictor, refer_below=0.9) as client:
        info = client.get("/v1/model").json()
        page = client.get("/")
        docs = client.get("/docs")
        schema = client.get("/openapi.json").json()
    assert info["class_names"] == CLASSES
    hashes = [member.weights_hash for member in predictor.members]
    assert [member["weights"] for member in info["members"]] == hashes
    assert (info["calibrated"], info["refer_below"]) == (False, 0.9)
    assert info["saliency_maps"] is True
    assert (info["voter"], info["group_attribute"], info["groups"]) == ("soft", None, [])
    assert {"/v1/predict", "/v1/model", "/healthz", "/metrics"} == set(schema["paths"])
    assert docs.status_code == 404  # FastAPI's page would load scripts from elsewhere
    assert "Research use only. Not a medical device." in page.text
    assert "Research use only. Not a medical device." in schema["info"]["description"]
    assert re.findall(r"(?:https?:)?//[\w.]+", page.text) == []
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_schema_names_the_address_and_port_of_this_server(predictor):
    with open_client(predictor) as client:
        schema = client.get("http://127.0.0.1:9123/openapi.json").json()
    assert (
        "curl -F files=@image.png http://127.0.0.1:9123/v1/predict" in schema["info"]["description"]
    )
    assert '{"detail": reason}' in schema["info"]["description"]
    assert schema["servers"] == [{"url": "http://127.0.0.1:9123/"}]


def test_schema_describes_every_field_of_request_and_response(predictor):
    with open_client(predictor) as client:
        schema = client.get("/openapi.json").json()
        prediction = post_images(client, [image_file()]).json()["predictions"][0]
    body = schema["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    fields = body["multipart/form-data"]["schema"]["properties"]
    assert set(fields) == {"files", "group", "frame", "saliency_maps"}
    properties = schema["components"]["schemas"]["ImagePrediction"]["properties"]
    assert set(properties) == set(prediction)
    assert all(field["description"] for field in (*fields.values(), *properties.values()))


def test_metrics_count_requests_images_and_batches(predictor):
    with open_client(predictor) as client:
        post_images(client, [image_file(0), image_file(1), image_file(2)])
        post_images(client, [("x.png", b"x")])
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = [line for line in response.text.splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
    assert values['consilium_requests_total{path="/v1/predict",status="200"}'] == 1
    assert values['consilium_requests_total{path="/v1/predict",status="415"}'] == 1
    assert values["consilium_images_total"] == values["consilium_batch_images_sum"] == 3
    assert values['consilium_request_seconds_bucket{le="+Inf"}'] == 2
    assert values["consilium_request_seconds_count"] == 2
    assert values["consilium_images_limit"] == 64
    assert 0 < values["consilium_model_seconds_total"] < 600


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\evil.png", "evil.png"),
        ("a\x00\x1bb.png", "ab.png"),
        ("/", "image"),
        ("x" * 5000, "x" * 80),
    ],
)
def test_file_name_of_a_client_is_only_a_label(name, expected):
    assert display_name(name) == expected


def test_frame_is_chosen_by_a_field_and_never_by_the_file_name(predictor, tmp_path, monkeypatch):
    frames = [np.full((40, 40), value, np.uint8) for value in (10, 200)]
    cv2.imwritemulti(str(tmp_path / "two.tif"), frames)
    data = (tmp_path / "two.tif").read_bytes()
    monkeypatch.chdir(tmp_path)
    with open_client(predictor) as client:
        refused = post_images(client, [("two.tif#1", data)])
        second = post_images(client, [("two.tif", data)], frame="1").json()["predictions"][0]
    assert refused.status_code == 422
    assert "2 frames" in refused.json()["detail"]
    expected = predictor.predict(read_image("two.tif#1"))[-1]
    assert list(second["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
