"""The server gives the evaluation's numbers, queues, refuses, and says what it is."""

import base64
import re
import socket
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from commands import serve
from commands.looking import Model, load
from commands.serving.answers import Asked
from commands.serving.app import Settings, make
from commands.serving.desk import Desk
from commands.serving.upload import Limits
from datamodules.images import read
from datamodules.preprocess import Preprocess
from evaluation import voters
from evaluation.calibration import Temperature
from evaluation.pooling import Weighted
from evaluation.selective import fit_referral
from evaluation.table import PredictionTable
from evaluation.voters import Council
from evaluation.weights import PerPart
from lightning_modules import ImageClassifier, checkpoints
from main import main
from tests.commands.saved import CLASSES, council_of, saved


def client(model, **settings):
    return TestClient(make(model, Settings(**settings)), base_url="http://127.0.0.1")


def post(asked, files, **data):
    return asked.post("/v1/predict", files=[("files", file) for file in files], data=data)


def film(seed=0, size=40):
    """A file of noise, by a name of its own."""
    noise = np.random.default_rng(seed).integers(0, 255, (size, size + 8), np.uint8)
    return f"film{seed}.png", cv2.imencode(".png", noise)[1].tobytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("members")
    made = {"small": ("test_resnet", 32), "large": ("test_efficientnet", 48)}
    return [
        saved(ImageClassifier(CLASSES, name, image_size=size), Preprocess(size=size),
              folder / f"{file}.ckpt")
        for file, (name, size) in made.items()
    ]  # fmt: skip


@pytest.fixture(scope="module")
def council(files):
    return council_of(files[0].parent / "council", files)


@pytest.fixture(scope="module")
def model(council):
    return load(council)


@pytest.fixture(scope="module")
def tested(tiny, resnet, larger):
    """Run folder of a council with a fitted, calibrated voter, tested by the command."""
    folder = tiny.root / "served"
    runs = [resnet, larger]
    hashes = [checkpoints.read(run / "best.ckpt")[0].weights for run in runs]
    voter = Council(Weighted(np.array([3, 1])), hashes, CLASSES, Temperature(0.6), "val")
    voters.save(folder / "voters", voter)
    said = {"members": [str(run) for run in runs], "voter": str(folder / "voters")}
    council = {"class_path": "lightning_modules.EnsembleModule", "init_args": said}
    config = tiny.member("served", model=council)
    base = Path(__file__).parents[2] / "configs" / "base.yaml"
    words = ["--config", str(base), "--config", str(config), "--run", str(folder / "council")]
    assert main(["test", *words]) == 0
    return folder / "council"


def tables(tested, resnet, which):
    if which == "checkpoint":
        return resnet, {"": PredictionTable.read(resnet / "predictions/test.parquet")}
    folder = tested / "predictions"
    names = {"": "test.parquet", "resnet": "test/resnet.parquet", "larger": "test/larger.parquet"}
    return tested, {name: PredictionTable.read(folder / file) for name, file in names.items()}


@pytest.mark.parametrize("which", ["checkpoint", "council"])
def test_the_numbers_are_those_of_the_prediction_table(which, tiny, tested, resnet):
    path, expected = tables(tested, resnet, which)
    folder = next((tiny.root / "phantoms").glob("fracture-64px*"))
    ids = expected[""].rows["id"].tolist()
    found = []
    with client(load(path)) as asked:
        for start in range(0, len(ids), 16):
            names = ids[start : start + 16]
            reply = post(asked, [(name, (folder / name).read_bytes()) for name in names])
            found += reply.json()["answers"]
    assert len(found) == len(ids) > 10
    for at, answer in enumerate(found):
        council = list(answer["probabilities"].values())
        np.testing.assert_allclose(council, expected[""].probabilities[at], atol=1e-5)
        assert answer["confidence"] == max(council)
        for vote in answer["members"] if which == "council" else []:
            own = expected[vote["name"]].probabilities[at]
            np.testing.assert_allclose(list(vote["probabilities"].values()), own, atol=1e-5)


def test_an_answer_counts_votes_and_refers_below_the_threshold(model):
    name, data = film()
    said = model.ask(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))
    confidence = float(said[-1].max())
    for threshold, referred in ((confidence - 1e-4, False), (confidence + 1e-4, True)):
        with client(model, refer_below=threshold) as asked:
            answer = post(asked, [(name, data)]).json()["answers"][0]
        assert answer["referred"] is referred
    top = said[-1].argmax()
    assert answer["class"] == CLASSES[top]
    assert answer["agreement"] == np.mean(said[:-1].argmax(axis=1) == top)
    assert [vote["agrees"] for vote in answer["members"]] == [v.argmax() == top for v in said[:-1]]
    assert (answer["width"], answer["height"], answer["maps"]) == (48, 40, None)


def test_several_pictures_are_answered_in_their_order_or_none(model):
    many = [film(seed) for seed in range(5)]
    with client(model) as asked:
        alone = [post(asked, [one]).json()["answers"][0] for one in many]
        together = post(asked, many).json()["answers"]
        broken = post(asked, [many[0], ("b.png", many[1][1][:60])])
    assert [one["name"] for one in together] == [name for name, _ in many]
    for one, other in zip(alone, together, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    assert broken.status_code == 422
    assert "b.png: " in broken.json()["detail"]


def pixels(url):
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_maps_are_those_of_explain_in_colours_that_warm_up(model):
    name, data = film(1, 64)
    looked = model.look(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))
    with client(model) as asked:
        maps = post(asked, [(name, data)], maps="true").json()["answers"][0]["maps"]
    assert pixels(maps["picture"]).shape == (64, 72, 3)
    for heat, url in ((looked.heat, maps["council"]), (looked.maps[1], maps["members"]["large"])):
        blue, _, red, opacity = np.moveaxis(pixels(url).astype(int), 2, 0)
        size = heat.shape[::-1]
        small = cv2.resize(opacity.astype(np.float32) / 255, size, interpolation=cv2.INTER_AREA)
        assert np.median(np.abs(small - heat)) < 0.02
        warm = (opacity > 190) & (red < 255)
        assert (red[warm] > blue[warm]).mean() > 0.99


class Held(Model):
    """A model that answers when it is let."""

    let: threading.Event

    def answer(self, seen, parts):
        assert self.let.wait(60)
        return super().answer(seen, parts)


@pytest.fixture
def held(model):
    slow = Held(model.members, model.council, model.device)
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
        assert post(asked, [film()]).status_code == 503
        held.let.set()
        until(lambda: post(asked, [film()]).status_code == 200)


def test_what_waits_goes_through_the_models_together(held):
    sizes = []
    desk = Desk(held, together=4, seen=sizes.append)
    name, data = film()
    seen = held.prepare(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))
    asked = Asked(name, seen, np.zeros((4, 4), np.uint8), 4, 4, "", False)
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


def test_a_fault_of_the_models_is_the_callers_answer_and_not_the_end(model):
    class Faulty(Model):
        calls = 0

        def answer(self, seen, parts):
            type(self).calls += 1
            if type(self).calls == 1:
                raise RuntimeError("no memory")
            return super().answer(seen, parts)

    faulty = Faulty(model.members, model.council, model.device)
    app = make(faulty, Settings())
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as asked:
        assert post(asked, [film()]).status_code == 500
        assert post(asked, [film()]).status_code == 200


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        ({"frame": "-1"}, 400, "frame is '-1'; it must be a number from 0"),
        ({"frame": "7"}, 422, "film0.png: frame is 7; the file has the frames 0 to 0"),
        ({"maps": "yes"}, 400, "maps is 'yes'; it must be true or false"),
        ({"path": "/etc/passwd"}, 400, "field 'path': allowed are the files `files`"),
    ],
)
def test_fields_are_checked(model, data, status, words):
    with client(model) as asked:
        reply = post(asked, [film()], **data)
    assert (reply.status_code, words in reply.json()["detail"]) == (status, True)


def test_a_council_that_needs_the_body_part_asks_for_it(files, model):
    weights = np.array([[1.0, 0.0], [0.0, 1.0]])
    voter = PerPart("body_part", ["elbow", "wrist"], weights, np.array([0.5, 0.5]))
    parts = replace(model, council=replace(model.council, voter=voter))
    with client(parts) as asked:
        assert asked.get("/v1/model").json()["body_parts"] == ["elbow", "wrist"]
        assert "body_part is missing" in post(asked, [film()]).json()["detail"]
        for part, member in (("elbow", 0), ("wrist", 1)):
            answer = post(asked, [film()], body_part=part).json()["answers"][0]
            expected = answer["members"][member]["probabilities"]
            assert answer["probabilities"] == pytest.approx(expected)
        assert post(asked, [film()], body_part="nose").status_code == 200


def test_a_token_locks_everything_but_health_and_the_bare_page(model):
    with client(model, token="s3cret") as asked:
        locked = ["/v1/model", "/metrics"]
        assert [asked.get(path).status_code for path in locked] == [401, 401]
        assert post(asked, [film()]).status_code == 401
        assert [asked.get(path).status_code for path in ("/", "/healthz")] == [200, 200]
        for given, status in (("s3cret", 200), ("s3cre", 401), ("s3cretx", 401), ("é", 401)):
            headers = {"Authorization": f"Bearer {given}".encode()}
            assert asked.get("/v1/model", headers=headers).status_code == status


def test_only_the_names_of_this_machine_are_answered_unless_told_otherwise(model):
    with client(model) as asked:
        assert asked.get("/healthz", headers={"Host": "evil.example"}).status_code == 400
        assert asked.get("/healthz", headers={"Host": "localhost:8000"}).status_code == 200
    with client(model, hosts=[]) as asked:
        assert asked.get("/healthz", headers={"Host": "ward.example"}).status_code == 200


def test_what_it_is_and_how_to_ask_is_said_without_help_from_elsewhere(model):
    with client(model, refer_below=0.9) as asked:
        facts = asked.get("/v1/model").json()
        pages = {path: asked.get(path) for path in ("/", "/docs")}
        schema = asked.get("/openapi.json").json()
    assert facts["class_names"] == CLASSES
    assert [m["weights"] for m in facts["members"]] == [m.weights for m in model.members]
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


def test_metrics_count_requests_pictures_and_batches(model):
    with client(model) as asked:
        post(asked, [film(0), film(1), film(2)])
        post(asked, [("x.png", b"x")])
        lines = asked.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['consilium_requests_total{path="/v1/predict",status="200"}'] == "1"
    assert values['consilium_requests_total{path="/v1/predict",status="415"}'] == "1"
    assert values["consilium_pictures_total"] == values["consilium_batch_pictures_sum"] == "3"
    assert values['consilium_request_seconds_bucket{le="+Inf"}'] == "2"
    assert values["consilium_request_seconds_count"] == "2"


def test_onnxruntime_answers_alike_with_maps_and_an_export_without(files, tmp_path):
    assert main(["export", str(files[0]), "-o", str(tmp_path / "out")]) == 0
    model = load(files[0])
    other = serve.model_of(files[0], "onnxruntime", torch.device("cpu"))
    alone = serve.model_of(tmp_path / "out", "torch", torch.device("cpu"))
    replies = []
    for each in (model, other, alone):
        with client(each) as asked:
            replies.append(post(asked, [film()]).json()["answers"][0])
            status = post(asked, [film()], maps="true").status_code
            assert status == (422 if each is alone else 200)
    for reply in replies[1:]:
        assert reply["probabilities"] == pytest.approx(replies[0]["probabilities"], abs=1e-5)
    assert other.members[0].runtime is not None


def test_examples_are_what_the_folder_holds_that_can_be_read(model, tmp_path, capsys):
    for seed in range(3):
        name, data = film(seed)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "notes.txt").write_text("no picture")
    found = serve.examples(tmp_path)
    assert [path.name for path in found] == ["film0.png", "film1.png", "film2.png"]
    with client(model, examples=found) as asked:
        assert asked.get("/v1/model").json()["examples"] == [path.name for path in found]
        assert asked.get("/examples/1").content == film(1)[1]
        assert asked.get("/examples/1/thumbnail").headers["content-type"] == "image/png"
        statuses = {at: asked.get(f"/examples/{at}").status_code for at in ("3", "-1", "film0.png")}
    assert statuses == {"3": 404, "-1": 404, "film0.png": 422}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no pictures in it"):
        serve.examples(tmp_path / "empty")


def test_a_threshold_for_a_risk_is_chosen_on_val(resnet, council):
    words = ["--refer-risk", "0.3"]
    asked = serve.parser().parse_args([str(resnet), *words])
    table = PredictionTable.read(resnet / "predictions" / "val.parquet")
    expected = fit_referral(table, 0.3).threshold
    assert serve.refer_below(asked, load(resnet)) == expected
    asked = serve.parser().parse_args([str(council), *words])
    with pytest.raises(ValueError, match=r"--refer-risk: no val table in .*predictions"):
        serve.refer_below(asked, load(council))


def test_an_address_that_is_taken_and_a_model_that_is_none_are_one_line(council, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", str(council), "--port", port]) == 2
    assert re.search(rf"--port {port}: .*in use", capsys.readouterr().err)
    assert main(["serve", str(tmp_path / "no.ckpt")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err


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
def test_a_name_is_only_a_label(model, name):
    from commands.serving.upload import shown

    assert shown(name.given) == name.shown


def test_frames_are_named_by_a_field_and_never_by_the_file(model, tmp_path, monkeypatch):
    pages = [np.full((40, 40), value, np.uint8) for value in (10, 200)]
    cv2.imwritemulti(str(tmp_path / "two.tif"), pages)
    data = (tmp_path / "two.tif").read_bytes()
    monkeypatch.chdir(tmp_path)
    with client(model) as asked:
        refused = post(asked, [("two.tif#1", data)])
        second = post(asked, [("two.tif", data)], frame="1").json()["answers"][0]
    assert refused.status_code == 422
    assert "2 frames; name one by its number" in refused.json()["detail"]
    expected = model.ask(read("two.tif#1"))[-1]
    assert list(second["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
