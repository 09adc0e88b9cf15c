"""The page in a browser: a phantom is dropped, and class, votes and map appear."""

import contextlib
import os
import shutil
import threading

import cv2
import pytest
import torch
import uvicorn
from playwright.sync_api import sync_playwright

from consilium.cli import serve
from consilium.inference.export import generated_images
from consilium.inference.predictor import load_predictor
from consilium.serving import server as options
from consilium.serving.app import create_app
from consilium.serving.service import ServerSettings
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from tests.consilium.untrained import CLASSES, write_ensemble, save_checkpoint

DROP = """([name, bytes]) => {
    const held = new DataTransfer();
    held.items.add(new File([new Uint8Array(bytes)], name));
    for (const kind of ["dragover", "drop"]) {
        document.getElementById("drop").dispatchEvent(
            new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: held }));
    }
}"""
PASTE = """(bytes) => {
    const held = new DataTransfer();
    held.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: held }));
}"""

REQUIRED = "CONSILIUM_BROWSER"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Three unlike members."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("members")
    names = {"resnet": "test_resnet", "efficientnet": "test_efficientnet", "tiny": "resnet10t"}
    files = [
        save_checkpoint(ImageClassifier(CLASSES, name, image_size=64), Preprocess(size=64),
              folder / f"{file}.ckpt")
        for file, name in names.items()
    ]  # fmt: skip
    return load_predictor(write_ensemble(folder / "ensemble", files))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for at, picture in enumerate(generated_images(3)):
        cv2.imwrite(str(folder / f"phantom{at}.png"), picture)
    return folder


@contextlib.contextmanager
def serving(model, **settings):
    """The address of a server in a thread."""
    with serve.listening("127.0.0.1", 0) as listener:
        app = create_app(model, ServerSettings(**settings))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program and not os.environ.get(REQUIRED):
        pytest.skip(f"no browser: apt-get install chromium ({REQUIRED}=1 makes this a failure)")
    assert program, f"{REQUIRED} is set, and there is no browser: apt-get install chromium"
    with sync_playwright() as tools:
        opened = tools.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, model, films):
    """The page on a desktop, with what it asked for and what went wrong on it."""
    settings = {"refer_below": 1.0, "title": "three <b>members</b>"}
    with serving(model, examples=options.find_examples(films), **settings) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.asked, page.faults = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.goto(url)
        page.locator("#ask").wait_for()
        yield page
        assert page.faults == []
        assert {u for u in page.asked if not u.startswith((url, "data:", "blob:"))} == set()
        page.close()


def card(page, place=0):
    """An answer that has come."""
    found = page.locator("article").nth(place)
    found.and_(page.locator(":not([aria-busy])")).wait_for()
    return found


def test_a_phantom_is_dropped_and_class_votes_and_map_appear(page, model, films, tmp_path):
    file = films / "phantom0.png"
    page.evaluate(DROP, [file.name, list(file.read_bytes())])
    answer = card(page)
    said = model.ask(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))
    top = CLASSES[int(said[-1].argmax())]
    assert answer.locator(".answer").inner_text() == top
    assert f"{100 * said[-1].max():.1f} %" in answer.locator(".confidence").inner_text()
    assert "Refer to a person" in answer.locator(".refer").inner_text()
    votes = dict(text.split("\n") for text in answer.locator(".vote .who").all_inner_texts())
    assert list(votes) == ["Ensemble", "resnet", "efficientnet", "tiny"]
    for name, vote in zip(list(votes)[1:], said, strict=False):
        assert f"{CLASSES[int(vote.argmax())]} {100 * vote.max():.1f} %" in votes[name]
    agree = int((said[:-1].argmax(axis=1) == said[-1].argmax()).sum())
    assert f"{agree} of 3 members agree" in page.locator("#said").inner_text()
    map_ = answer.locator("img.map")
    assert map_.evaluate("image => image.complete && image.naturalWidth") >= 256
    assert page.locator("h1").inner_text() == "three <b>members</b>"
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    assert cv2.imread(str(tmp_path / "page.png")).shape[1] == 1280


def test_the_map_fades_with_the_slider_and_is_each_members_own(page, films):
    page.set_input_files("#file", films / "phantom1.png")
    map_ = card(page).locator("img.map")
    page.get_by_label("Opacity").fill("20")
    assert float(map_.evaluate("image => image.style.opacity")) == 0.2
    ensemble = map_.get_attribute("src")
    page.get_by_label("efficientnet", exact=True).check()
    assert map_.get_attribute("src") != ensemble


def test_everything_can_be_done_by_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.title") == "phantom0.png"
    page.keyboard.press("Enter")
    assert card(page).locator("h2").inner_text() == "phantom0.png"
    page.get_by_role("button", name="Remove all answers").focus()
    page.keyboard.press("Enter")
    assert page.locator("article").count() == 0


def test_several_files_paste_and_a_file_that_is_none(page, films, tmp_path):
    (tmp_path / "evil.svg").write_text("<svg onload=alert(1)><script>alert(1)</script></svg>")
    names = [films / "phantom0.png", tmp_path / "evil.svg", films / "phantom2.png"]
    page.set_input_files("#file", names)
    page.evaluate(PASTE, list((films / "phantom1.png").read_bytes()))
    heads = [card(page, at).locator("h2").inner_text() for at in range(4)]
    assert heads == ["pasted.png", "phantom2.png", "evil.svg", "phantom0.png"]
    assert "none of png, jpeg, tiff" in card(page, 2).locator(".error").inner_text()


def full(page, seconds):
    """From now on there is no room; returns the list that grows with every request."""
    asked = []

    def refuse(route):
        asked.append(route.request)
        route.fulfill(status=503, headers={"Retry-After": seconds}, json={"detail": "no room"})

    page.route("**/v1/predict", refuse)
    return asked


def test_a_server_without_room_is_asked_so_often_and_no_more(page, films):
    asked = full(page, "0")
    page.set_input_files("#file", films / "phantom0.png")
    assert card(page).locator(".error").inner_text() == "Not answered: no room"
    assert len(asked) == 20


def test_an_answer_that_was_removed_is_asked_for_no_more(page, films):
    full(page, "2")
    page.set_input_files("#file", films / "phantom0.png")
    page.get_by_text("asking again soon").wait_for()
    page.get_by_role("button", name="Remove all answers").click()
    page.set_input_files("#file", films / "phantom1.png")  # its turn comes once the first is over
    page.get_by_text("asking again soon").wait_for()


def test_a_frame_that_cannot_be_asked_for_is_said(page, films):
    detail = "phantom0.png: 3 frames; select one"
    page.route("**/v1/predict", lambda route: route.fulfill(status=422, json={"detail": detail}))
    page.set_input_files("#file", films / "phantom0.png")
    again = page.get_by_role("button", name="Look at this frame")
    again.wait_for()
    page.unroute("**/v1/predict")
    page.route("**/v1/predict", lambda route: route.abort())
    again.click()
    page.locator(".error", has_text="Failed to fetch").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_the_systems_colors(page, films, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    page.set_input_files("#file", films / "phantom0.png")
    card(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_token_is_asked_for_and_opens_the_examples_too(browser, model, films):
    with serving(model, token="s3cret", examples=options.find_examples(films)) as url:
        page = browser.new_page()
        page.goto(url)
        for token in ("wrong", "s3cret"):
            page.locator("#token").fill(token)
            page.keyboard.press("Enter")
        page.locator("#examples img[src^=blob]").nth(2).wait_for()
        page.locator("#examples button").first.click()
        assert card(page).locator(".answer").inner_text() in CLASSES
        page.close()
