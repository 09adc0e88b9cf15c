"""The web page in a browser: an image is dropped, and class, members and saliency map appear."""

import contextlib
import threading
from dataclasses import replace

import cv2
import pytest
import torch
import uvicorn

from consilium.inference.export import generated_images
from consilium.inference.predictor import load_predictor
from consilium.serving import server
from consilium.serving.server import create_app
from consilium.serving.service import ServerSettings
from datamodules.preprocess import Preprocess
from evaluation.metrics.calibration import Calibration
from evaluation.stats.estimate import Estimate
from lightning_modules import ImageClassifier
from tests.consilium.untrained import CLASSES, save_checkpoint, write_ensemble

DROP = """([name, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name));
    for (const kind of ["dragover", "drop"]) {
        document.getElementById("drop").dispatchEvent(
            new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
    }
}"""
PASTE = """(bytes) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
}"""

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """An ensemble of three different untrained members."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("members")
    names = {"resnet": "test_resnet", "efficientnet": "test_efficientnet", "tiny": "resnet10t"}
    files = [
        save_checkpoint(
            ImageClassifier(CLASSES, backbone, image_size=64),
            Preprocess(size=64),
            folder / f"{name}.ckpt",
        )
        for name, backbone in names.items()
    ]
    return load_predictor(write_ensemble(folder / "ensemble", files))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(generated_images(3)):
        cv2.imwrite(str(folder / f"phantom{index}.png"), image)
    return folder


@contextlib.contextmanager
def running_server(predictor, **settings):
    """URL of a server in a thread."""
    with server.open_listener("127.0.0.1", 0) as listener:
        app = create_app(predictor, ServerSettings(**settings))
        web_server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=web_server.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        web_server.should_exit = True
        thread.join()


@pytest.fixture
def page(browser, predictor, image_folder):
    """The page on a desktop; afterwards no script error and no request to another server."""
    examples = server.find_examples(image_folder, image_folder)
    title = "three <b>models</b>"
    with running_server(predictor, examples=examples, refer_below=1.0, title=title) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.locator("#upload").wait_for()
        yield page
        assert errors == []
        assert {r for r in requests if not r.startswith((url, "data:", "blob:"))} == set()
        page.close()


def result_card(page, index=0):
    """A result, once it is complete."""
    card = page.locator("article").nth(index)
    card.and_(page.locator(":not([aria-busy])")).wait_for()
    return card


def test_dropped_image_shows_class_members_and_saliency_map(
    page, predictor, image_folder, tmp_path
):
    file = image_folder / "phantom0.png"
    page.evaluate(DROP, [file.name, list(file.read_bytes())])
    card = result_card(page)
    probabilities = predictor.predict(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))
    predicted = int(probabilities[-1].argmax())
    assert card.locator(".class-name").inner_text() == CLASSES[predicted]
    percent = f"{100 * probabilities[-1].max():.1f} %"
    assert percent in card.locator(".probability").inner_text()
    assert "Refer to a person" in card.locator(".refer").inner_text()
    texts = card.locator(".prediction .label").all_inner_texts()
    labels = dict(text.split("\n") for text in texts)
    names = ["Ensemble", "resnet", "efficientnet", "tiny"]
    assert list(labels) == [f"{name}, raw" for name in names]
    for name, row in zip(list(labels)[1:], probabilities, strict=False):
        assert f"{CLASSES[int(row.argmax())]} {100 * row.max():.1f} %" in labels[name]
    agreeing = int((probabilities[:-1].argmax(axis=1) == predicted).sum())
    assert f"{agreeing} of 3 models agree" in page.locator("#status").inner_text()
    card.locator("summary").click()
    assert card.locator("table").inner_text().count("0.33") >= 3  # the members' weights
    saliency_map = card.locator("img.map")
    assert saliency_map.evaluate("image => image.complete && image.naturalWidth") >= 256
    assert page.locator("h1").inner_text() == "three <b>models</b>"
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    assert cv2.imread(str(tmp_path / "page.png")).shape[1] == 1280


def test_slider_sets_the_opacity_and_each_member_has_its_map(page, image_folder):
    page.set_input_files("#file", image_folder / "phantom1.png")
    saliency_map = result_card(page).locator("img.map")
    page.get_by_label("Opacity").fill("20")
    assert float(saliency_map.evaluate("image => image.style.opacity")) == 0.2
    ensemble = saliency_map.get_attribute("src")
    page.get_by_label("efficientnet", exact=True).check()
    assert saliency_map.get_attribute("src") != ensemble


def test_page_can_be_used_by_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.title") == "phantom0.png"
    page.keyboard.press("Enter")
    assert result_card(page).locator("h2").inner_text() == "phantom0.png"
    page.get_by_role("button", name="Remove all results").focus()
    page.keyboard.press("Enter")
    assert page.locator("article").count() == 0


def test_several_files_a_pasted_image_and_a_file_that_is_no_image(page, image_folder, tmp_path):
    (tmp_path / "evil.svg").write_text("<svg onload=alert(1)><script>alert(1)</script></svg>")
    files = [image_folder / "phantom0.png", tmp_path / "evil.svg", image_folder / "phantom2.png"]
    page.set_input_files("#file", files)
    page.evaluate(PASTE, list((image_folder / "phantom1.png").read_bytes()))
    names = [result_card(page, index).locator("h2").inner_text() for index in range(4)]
    assert names == ["pasted.png", "phantom2.png", "evil.svg", "phantom0.png"]
    error = result_card(page, 2).locator(".error").inner_text()
    assert error == ("This is not an image. Allowed are PNG, JPEG, TIFF, BMP, WebP and DICOM.")


def refuse_requests(page, retry_after):
    """Answers every prediction request with 503; returns the growing list of requests."""
    requests = []

    def refuse(route):
        requests.append(route.request)
        headers = {"Retry-After": retry_after}
        route.fulfill(status=503, headers=headers, json={"detail": "the server is full"})

    page.route("**/v1/predict", refuse)
    return requests


def test_busy_server_is_tried_a_limited_number_of_times(page, image_folder):
    requests = refuse_requests(page, "0")
    page.set_input_files("#file", image_folder / "phantom0.png")
    error = result_card(page).locator(".error").inner_text()
    assert error == "The server is full"
    assert len(requests) == 20


def test_removed_result_is_not_requested_again(page, image_folder):
    refuse_requests(page, "2")
    page.set_input_files("#file", image_folder / "phantom0.png")
    page.get_by_text("trying again soon").wait_for()
    page.get_by_role("button", name="Remove all results").click()
    page.set_input_files("#file", image_folder / "phantom1.png")  # waits for the first to end
    page.get_by_text("trying again soon").wait_for()


def test_error_of_a_frame_request_is_shown(page, image_folder):
    detail = "phantom0.png: 3 frames; choose one"
    page.route("**/v1/predict", lambda route: route.fulfill(status=422, json={"detail": detail}))
    page.set_input_files("#file", image_folder / "phantom0.png")
    button = page.get_by_role("button", name="Analyze this frame")
    button.wait_for()
    page.unroute("**/v1/predict")
    page.route("**/v1/predict", lambda route: route.abort())
    button.click()
    page.locator(".error", has_text="The server does not respond").wait_for()


def test_a_wrong_frame_number_can_be_corrected(page, image_folder, tmp_path):
    frames = [cv2.imread(str(image_folder / f"phantom{k}.png"), 0)[:64, :64] for k in range(3)]
    cv2.imwritemulti(str(tmp_path / "scan.tif"), frames)
    page.set_input_files("#file", tmp_path / "scan.tif")
    error = "This file has 3 frames. Enter the number of one; the first is 0."
    page.locator(".error", has_text=error).wait_for()
    for wrong, reason in (
        ("7", "There is no frame 7. This file has the frames 0 to 2."),
        ("-1", "The frame must be a whole number from 0."),
    ):
        page.get_by_label("Frame").fill(wrong)
        page.get_by_role("button", name="Analyze this frame").click()
        page.locator(".error", has_text=reason).wait_for()
        assert page.get_by_label("Frame").input_value() == wrong
    page.get_by_label("Frame").fill("2")
    page.get_by_role("button", name="Analyze this frame").click()
    assert result_card(page).locator(".class-name").inner_text() in CLASSES


def test_a_damaged_file_is_refused_in_plain_words(page, image_folder, tmp_path):
    content = (image_folder / "phantom0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    page.set_input_files("#file", tmp_path / "cut.png")
    error = result_card(page).locator(".error").inner_text()
    assert error == "This file is damaged or incomplete."


def test_members_and_maps_have_their_calibration_and_measured_pointing_score(
    browser, predictor, image_folder
):
    fitted = replace(predictor.ensemble, calibration=Calibration(0.5),
                     member_calibrations=[Calibration(2.0)] * 3)  # fmt: skip
    pointing = {"ensemble": Estimate(0.62, 0.4, 0.8, "Wilson", 18, 18),
                "tiny": Estimate(0.25, 0.1, 0.5, "Wilson", 18, 18)}  # fmt: skip
    with running_server(replace(predictor, ensemble=fitted), pointing=pointing) as url:
        page = browser.new_page()
        page.goto(url)
        page.set_input_files("#file", image_folder / "phantom0.png")
        card = result_card(page)
        labels = [
            text.split("\n")[0] for text in card.locator(".prediction .label").all_inner_texts()
        ]
        assert labels == [
            f"{n}, calibrated" for n in ("Ensemble", "resnet", "efficientnet", "tiny")
        ]
        card.locator("summary").click()
        assert card.get_by_role("rowheader", name="tiny, raw").count() == 1
        score = "in the lesion's box in 62 % of 18 images; 95 % interval 40 to 80 %"
        assert score in card.inner_text()
        page.get_by_label("tiny", exact=True).check()
        assert "25 % of 18 images" in card.inner_text()
        page.get_by_label("resnet", exact=True).check()
        assert "How often these maps point at the lesion was not measured." in card.inner_text()
        page.close()


def test_an_export_without_maps_says_so_before_an_image_is_chosen(browser, predictor, page):
    assert not page.locator("#no-maps").is_visible()
    members = [replace(member, explainer=None) for member in predictor.members]
    with running_server(replace(predictor, members=members)) as url:
        page_of_export = browser.new_page()
        page_of_export.goto(url)
        page_of_export.locator("#upload").wait_for()
        note = page_of_export.locator("#no-maps")
        assert note.is_visible()
        assert "gives no saliency maps" in note.inner_text()
        page_of_export.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_follows_the_color_scheme(page, image_folder, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    page.set_input_files("#file", image_folder / "phantom0.png")
    result_card(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_token_is_required_for_predictions_and_examples(browser, predictor, image_folder):
    examples = server.find_examples(image_folder, image_folder)
    with running_server(predictor, token="s3cret", examples=examples) as url:
        page = browser.new_page()
        page.goto(url)
        for token in ("wrong", "s3cret"):
            page.locator("#token").fill(token)
            page.keyboard.press("Enter")
        page.locator("#examples img[src^=blob]").nth(2).wait_for()
        page.locator("#examples button").first.click()
        assert result_card(page).locator(".class-name").inner_text() in CLASSES
        page.close()
