"""Clients that send nothing, too slowly, or hang up do not keep others from being served."""

import http.client
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from consilium.serving import connections, schemas, upload
from consilium.serving.connections import TimedProtocol
from consilium.serving.server import create_app, open_listener
from consilium.serving.service import ServerSettings
from tests.consilium.serving import image_file

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
FORM = HEAD + b"Content-Type: multipart/form-data; boundary=b\r\n"
CHUNKED = FORM + b"Transfer-Encoding: chunked\r\n\r\n"
SECONDS = 60  # for what happens at once, on a busy machine


@contextmanager
def running_server(predictor, early=lambda port: None, **settings):
    """The port of a server in a thread; `early` connects to it before it accepts connections."""
    with open_listener("127.0.0.1", 0) as listener:
        early(listener.getsockname()[1])
        app = create_app(predictor, ServerSettings(**settings))
        config = uvicorn.Config(app, http=TimedProtocol, log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def connect(port, data=b""):
    client = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    client.sendall(data)
    return client


def get(port, path="/healthz"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("GET", path, headers={"Host": "localhost"})
    return connection.getresponse()


def form_body():
    name, content = image_file()
    disposition = f'Content-Disposition: form-data; name="files"; filename="{name}"'
    return b"--b\r\n" + disposition.encode() + b"\r\n\r\n" + content + b"\r\n--b--\r\n"


def post(port, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Host": "localhost"}
    connection.request("POST", "/v1/predict", body, headers)
    return connection.getresponse()


def read_response(client):
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def is_closed(client):
    """Whether the server closes the connection without an answer."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def wait_until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "start", [b"", b"GET /healthz HTTP/1.1\r\n"], ids=["silent", "half a head"]
)
def test_a_connection_without_a_request_is_closed(predictor, monkeypatch, start):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with running_server(predictor) as port, connect(port, start) as client:
        assert is_closed(client)


def test_a_slow_second_request_of_a_connection_is_closed(predictor, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running_server(predictor) as port, connect(port, request) as client:
        assert read_response(client) == (200, b'{"status":"ok"}')
        client.sendall(b"GET /hea")
        assert is_closed(client)


def test_a_second_request_that_arrived_with_the_first_is_not_cut_off(predictor, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    predict_images = schemas.predict_images

    def predict_slowly(*arguments):
        time.sleep(0.6)
        return predict_images(*arguments)

    monkeypatch.setattr(schemas, "predict_images", predict_slowly)
    body = form_body()
    request = FORM + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with running_server(predictor) as port, connect(port, request + request) as client:
        answers = b""
        while answers.count(b" 200 OK") < 2:
            answers += (part := client.recv(65536))
            assert part


def test_the_oldest_silent_connections_make_room_for_new_clients(predictor, monkeypatch):
    monkeypatch.setattr(connections, "MAX_WAITING_PER_ADDRESS", 20)
    with running_server(predictor) as port:
        silent = [connect(port) for _ in range(60)]
        assert get(port).status == 200
        assert is_closed(silent[0])
        silent[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in silent[-1].recv(4096)
        for client in silent:
            client.close()


@pytest.mark.parametrize("start", [b"", CHUNKED], ids=["silent", "no body"])
def test_connections_that_arrive_at_once_are_limited_as_well(predictor, monkeypatch, start):
    monkeypatch.setattr(connections, "MAX_WAITING_PER_ADDRESS", 20)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 10 * SECONDS)
    silent = []

    def connect_all(port):
        silent.extend(connect(port, start) for _ in range(60))

    with running_server(predictor, connect_all) as port:
        assert get(port).status == 200
        assert all(is_closed(client) for client in silent[:40])
        for client in silent:
            client.close()


def test_uploads_that_send_nothing_take_no_place(predictor):
    with running_server(predictor, queue_size=4) as port:
        silent = [connect(port, CHUNKED) for _ in range(12)]
        assert post(port, form_body()).status == 200
        for client in silent:
            client.close()


def test_an_upload_that_is_too_slow_is_ended(predictor, monkeypatch):
    monkeypatch.setattr(upload, "GRACE_SECONDS", 0.2)
    with running_server(predictor) as port, connect(port, CHUNKED + b"3\r\n--b\r\n") as client:
        status, body = read_response(client)
    assert status == 408
    assert b"less than 1024 bytes a second" in body


def test_images_of_a_client_that_hung_up_are_not_predicted(predictor, monkeypatch, caplog):
    started, proceed, predicted = threading.Event(), threading.Event(), []
    predict_images = schemas.predict_images

    def predict_when_told(predictor, images, *arguments):
        started.set()
        assert proceed.wait(SECONDS)
        predicted.extend(image.name for image in images)
        return predict_images(predictor, images, *arguments)

    monkeypatch.setattr(schemas, "predict_images", predict_when_told)
    body = form_body()
    request = FORM + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with running_server(predictor, max_batch=1) as port:
        with connect(port, request) as first:
            assert started.wait(SECONDS)
            gone = connect(port, request)
            wait_until(lambda: in_progress(port) == 2)
            gone.close()
            wait_until(lambda: in_progress(port) == 1)
            proceed.set()
            assert b"200 OK" in first.recv(4096)
        assert post(port, body).status == 200
    assert len(predicted) == 2
    assert not [record for record in caplog.records if record.exc_info]


def in_progress(port):
    text = get(port, "/metrics").read().decode()
    return float(text.split("\nconsilium_images_in_progress ")[1].split("\n")[0])


def test_a_token_is_checked_before_the_body_is_read(predictor):
    with running_server(predictor, token="s3cret") as port, connect(port, CHUNKED) as client:
        assert b" 401 " in client.recv(4096)
