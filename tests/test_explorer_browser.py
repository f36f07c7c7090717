"""The explorer in headless Chromium: every tab, a slider move, a continuation, a label, and text that stays text."""

import importlib.util
import json
import shutil
import signal
import socket
from contextlib import contextmanager

import pytest
from command_processes import start_command, wait_for_page
from explorer_folders import HOSTILE, add_evaluation, make_corpus, make_run

for package in ("playwright", "gradio"):  # importing them takes seconds
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
PATIENCE = 60_000  # milliseconds; the machine may be busy


@contextmanager
def serve(place, labels, *options):
    """`phf explore` in a process of its own; gives the address and what it said before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = start_command("explore", place, "--labels", labels, "--port", port, *options)
    try:
        yield f"http://127.0.0.1:{port}", wait_for_page(server)
    finally:
        server.send_signal(signal.SIGINT)
        code, said = server.finish()
    assert code == 0
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore")
    corpus = make_corpus(folder / "corpus")
    run = make_run(corpus, folder / "run")
    add_evaluation(run)
    return folder


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(folders):
    with serve(folders / "run", folders / "labels.jsonl") as (address, said):
        assert len(said) == 1, "no warning"
        yield address


@pytest.fixture
def page(chromium, address):
    """The page of a run; fails on errors of its scripts and on requests to other machines."""
    context = chromium.new_context(viewport={"width": 1200, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda r: problems.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None,
    )
    page.goto(address)
    page.locator("#documents article").first.wait_for()
    yield page
    context.close()
    assert problems == []


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def test_hostile_documents_are_text(page):
    documents = page.locator("#documents")
    shown = documents.inner_text()
    for line in (*HOSTILE[0].splitlines(), "${document.title='owned'} {{7*7}} {% raw %} `tick`"):
        assert line.replace("bad8 ", "") in shown
    assert "⟨U+202E⟩esrever⟨U+202C⟩ ⟨U+200B⟩hidden" in shown
    assert "مرحبا بالعالم" in shown
    assert "characters are not shown" in shown
    assert len(page.content()) < 400_000
    assert documents.locator("script, img").count() == 0
    assert page.title().startswith("phf explore: Run run")
    rtl = documents.locator("article", has_text="مرحبا").locator(".document")
    assert rtl.evaluate("element => getComputedStyle(element).direction") == "rtl"
    width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert width <= 0, "the page scrolls sideways"


def test_the_slider_moves_what_is_good(page):
    verdicts = page.locator("#verdicts")
    before, num_bad = verdicts.inner_text(), page.locator("#documents .segment.bad").count()
    slider = page.locator("#threshold input[type=range]")
    assert float(slider.input_value()) == pytest.approx(0.4), "a run begins with its own threshold"
    slider.focus()
    slider.fill("0.8")
    page.locator("figcaption", has_text="above 0.80").wait_for()
    assert verdicts.inner_text() != before
    assert 0 < page.locator("#documents .segment.bad").count() < num_bad
    first = page.locator("#documents .segment.bad").first
    assert first.locator("b").inner_text() == "▲ 0.90"
    assert "underline" in first.locator(".text").evaluate(
        "element => getComputedStyle(element).textDecoration"
    )


def test_search_order_and_pages(page):
    page.fill("#search input, #search textarea", "QUIET poet")
    page.keyboard.press("Enter")
    page.locator("#count", has_text="1 document holds “QUIET poet”, of all 68").wait_for()
    page.locator("#documents article").nth(1).wait_for(state="detached")  # the list may follow the count
    assert page.locator("#documents article").count() == 1
    page.fill("#search input, #search textarea", "")
    page.keyboard.press("Enter")
    page.locator("#count", has_text="68 documents, page 1 of 9").wait_for()
    page.click("#next-documents")
    page.locator("#count", has_text="page 2 of 9").wait_for()
    page.click("#order input")
    page.get_by_role("option", name="worst segment first").click()
    page.locator("#count", has_text="page 1 of 9").wait_for()
    assert "worst 0.90" in page.locator("#documents article header").first.inner_text()


def test_samples_by_mode(page):
    open_tab(page, "Samples")
    page.locator("#samples section").first.wait_for()
    assert [text.split()[0] for text in page.locator("#samples h3").all_inner_texts()] == [
        "good",
        "bad",
        "none",
    ]
    assert HOSTILE[0].splitlines()[0] in page.locator("#samples").inner_text()
    assert page.locator("#samples").locator("script, img, i").count() == 0
    page.click("#sample-order input")
    page.get_by_role("option", name="worst first").click()
    page.locator("#samples section article header", has_text="▲ 0.90 sample 4").first.wait_for()


def test_the_playground_writes_what_phf_sample_writes(page, folders):
    open_tab(page, "Playground")
    hostile = "<img src=x onerror=\"document.title='owned'\"> ${1+1}"
    page.fill("#prompt textarea", hostile)
    page.get_by_label("Seed").fill("7")
    page.click("#write")
    written = page.locator("#written")
    page.wait_for_function(
        "() => document.querySelector('#written').innerText.match(/the page ended|length limit/g)?.length == 3"
    )
    assert written.inner_text().count(hostile) == 3
    assert written.locator("img").count() == 0
    assert "P(bad)" in written.inner_text()
    from phf.config.train import SamplingConfig
    from phf.evaluate.rollouts import open_target
    from phf.train.run import Run

    page.fill("#prompt textarea", "")
    page.click("#write")
    page.wait_for_function(
        "text => !document.querySelector('#written').innerText.includes(text)", arg=hostile
    )
    page.wait_for_function(
        "() => document.querySelector('#written').innerText.match(/the page ended|length limit/g)?.length == 3"
    )
    run = Run.open(folders / "run")
    sampling = SamplingConfig(num_samples=1, seed=7, max_new_tokens=60)
    for place, mode in enumerate(("good", "bad", "none")):
        texts = written.locator("section").nth(place).locator(".text").all_text_contents()
        target = open_target(run, mode)
        wanted = target.write([()], sampling)[0].text
        assert "".join(texts).split() == wanted.replace("\ufffd", "�").split()


def test_labels_are_stored_and_keys_work_on_their_tab_alone(page, folders):
    page.keyboard.press("g")
    open_tab(page, "Label")
    page.locator("#question article").first.wait_for()
    assert "@lines" in page.locator("#question header").inner_text()
    page.click("#key-b")
    page.locator("#status", has_text="1 judged (0 good, 1 bad)").wait_for()
    page.locator("#question").click()
    page.keyboard.press("g")
    page.locator("#status", has_text="2 judged (1 good, 1 bad)").wait_for()
    rows = [json.loads(line) for line in (folders / "labels.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [1, 0]
    open_tab(page, "Playground")
    page.locator("#prompt textarea").press("g")
    assert page.locator("#prompt textarea").input_value() == "g"
    page.locator("#explored").click()
    page.keyboard.press("g")
    page.wait_for_timeout(300)
    assert len((folders / "labels.jsonl").read_text().splitlines()) == 2


def test_a_phone_shows_everything_without_scrolling_sideways(chromium, address):
    context = chromium.new_context(viewport={"width": 360, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.locator("#documents article").first.wait_for()
    for name in ("Samples", "Playground", "Label", "Documents"):
        open_tab(page, name)
        page.wait_for_timeout(200)
        assert (
            page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        ), name
    context.close()


def test_other_names_and_other_machines(folders, chromium, address):
    """A page of another site cannot reach the server by a name that leads here; another host is served with a warning."""
    port = address.rpartition(":")[2]
    with socket.create_connection(("127.0.0.1", int(port))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    corpus = make_corpus(folders / "plain", annotated=False)
    with serve(corpus.path, folders / "l2.jsonl", "--host", "0.0.0.0") as (other, said):
        assert (
            "warning: --host 0.0.0.0 shows this page to everybody who can reach that address, without a password"
            in said[0]
        )
        page = chromium.new_page()
        page.set_default_timeout(PATIENCE)
        policy = page.goto(other).headers["content-security-policy"]
        assert policy.startswith("default-src 'self' ")
        page.locator("#documents article").first.wait_for()
        assert "has no finished annotation" in page.locator("body").inner_text()
        for name, sentence in (
            ("Samples", "only a run has samples"),
            ("Playground", "only a run has a model that writes"),
        ):
            open_tab(page, name)
            page.locator(".phf-error", has_text=sentence).wait_for()
        page.close()
