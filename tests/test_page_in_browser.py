"""The status page in a real headless Chromium; leaves screenshots in build/page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from infi_edge.config import WebConfig
from infi_edge.errors import ConfigError
from infi_edge.status import SinkStatus, SourceStatus
from infi_edge.web.server import WebServer
from tests.conftest import ROOT
from tests.pretend_control import PretendControl, learning
from tests.web_client import until

selenium = pytest.importorskip("selenium", reason="selenium is not here; pip install selenium")

from selenium.webdriver import Chrome, ChromeOptions, ChromeService  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402

pytestmark = pytest.mark.slow

SHOTS = ROOT / "build" / "page"
SIZES = {"phone": (390, 844, True), "desktop": (1280, 800, False)}
HOSTILE = '<img src=x onerror="window.owned = 1"><script>window.owned = 2</script>'


class Page:
    """The page, and a person in front of it."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get(f"{address}/")

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def part(self, name: str, source: str | None = None) -> WebElement:
        """An element by its data-is: of a source's card, or of the page."""
        if source is None:
            return self.all(f'[data-is="{name}"]:not(.source *)')[0]
        for card in self.all("section.source"):
            if card.find_element(By.TAG_NAME, "h2").text == source:
                return card.find_element(By.CSS_SELECTOR, f'[data-is="{name}"]')
        raise AssertionError(f"no card of {source}")

    def shows(self, text: str, name: str, source: str | None = None) -> bool:
        """Whether a part comes to show a text."""

        def there() -> bool:
            return bool(self.all("section.source")) and text in self.part(name, source).text

        return until(there, 30)

    def resize(self, size: str, scheme: str = "light", height: int | None = None) -> None:
        width, usual, mobile = SIZES[size]
        metrics = {"width": width, "height": height or usual, "mobile": mobile}
        metrics["deviceScaleFactor"] = 1
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def save(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def complaints(self) -> list[str]:
        """What the browser's console has: errors, refused requests, broken policies."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def hosts(self) -> set[str]:
        """The hosts that were asked for something since the last call."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = urlsplit(message["params"]["request"]["url"])
                found.add(url.netloc if url.scheme in ("http", "https") else url.scheme)
        return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium is not here; apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root has none
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser: Chrome) -> Iterator[Page]:
    result = Page(browser)
    result.resize("desktop")
    result.complaints()
    result.hosts()
    yield result
    browser.get("about:blank")
    browser.delete_all_cookies()


@pytest.fixture
def control() -> PretendControl:
    return PretendControl()


@pytest.fixture
def site(control: PretendControl) -> Iterator[WebServer]:
    server = WebServer(control, WebConfig(bind="127.0.0.1:0", pictures=True))
    server.start()
    yield server
    server.close()


def learns(control: PretendControl, **more: object) -> None:
    """Make a source one that learns in service."""
    source = control.current.sources[0]
    source.points, source.learning = [], learning(**more)
    source.bundle, source.promise = "", "accuracy of 0.95, learned in service"


def test_a_source_that_learns_shows_how_well_it_does_and_what_happened(
    page: Page, site: WebServer, control: PretendControl
) -> None:
    learns(control)
    page.open(site.address)
    for text, name in (
        ("97.1 %", "live"),
        ("96.2 % to 97.9 % at 95 % confidence, target 95 %", "live-bound"),
        ("93.4 % (90.1 % to 95.8 %)", "live-recall"),
        ("400 inferred ones", "remembered"),
        ("3,950, 118 of them wrong", "audited"),
        ("once", "failed-open"),
        ("filters", "learned-state"),
        ("set in the configuration", "target-fixed"),
    ):
        assert page.shows(text, name, "yard"), name
    changes = page.part("changes", "yard").text.split("\n")
    assert changes[0] == "closed after the scene changes after 201,060 inputs"
    assert not page.part("form", "yard").is_displayed()
    assert not page.part("no-points", "yard").is_displayed()
    assert not page.part("learned", "hum").is_displayed()
    control.current.sources[0].learning = learning(open=True, opened_for="below the target")
    assert page.shows("open: below the target, all is inferred", "learned-state", "yard")
    unkept = "/state/yard.learned is in use by another process"
    control.current.sources[0].learning = learning(sentence=unkept, accuracy=None, recall=None)
    assert page.shows(unkept, "not-kept", "yard")
    assert page.shows("no audit yet", "live-bound", "yard")
    assert page.complaints() == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_learned_fits_every_screen(
    page: Page, site: WebServer, control: PretendControl, size: str, scheme: str
) -> None:
    learns(control)
    page.resize(size, scheme)
    page.open(site.address)
    assert page.shows("97.1 %", "live", "yard")
    page.script("arguments[0].scrollIntoView()", page.part("learned", "yard"))
    page.save(f"learned-{size}-{scheme}")
    assert page.script("return document.documentElement.scrollWidth - innerWidth") <= 0


def test_the_page_shows_how_the_sources_do(page: Page, site: WebServer) -> None:
    page.open(site.address)
    assert page.shows("live", "state", "yard")
    for text, name in (
        ("camera:/dev/v4l/by-id/", "address"),
        ("Reused", "action"),
        ("true", "value"),
        ("p(changed) 0.031 is at most", "why"),
        ("85.2 %", "filtering"),
        ("42,120", "reuse"),
        ("352,370", "saved"),
        ("4 h 15 min", "saved-time"),
        ("31 GB", "saved-bytes"),
        ("Accuracy of at least 90 %", "promise"),
        ("1,730", "cache-entries"),
        ("RuntimeError", "faults"),
        ("0.2 ms", "filter-mean"),
    ):
        assert text in page.part(name, "yard").text
    assert page.part("state", "gate").text == "failing"
    assert "gives no picture for 10 s" in page.part("sentence", "gate").text
    assert "longer than its data ever did" in page.part("quiet", "hum").text
    assert page.part("health").text == "1 of 3 failing"
    assert page.part("cpu").text == "0.37 cores"
    assert page.part("temperature").text == "61 °C"
    assert page.part("voltage").text == "too weak"
    assert "refuses the connection" in page.part("sinks").text


def test_it_goes_on_with_the_daemon(page: Page, site: WebServer, control: PretendControl) -> None:
    page.open(site.address)
    assert page.shows("Reused", "action", "yard")
    yard = control.current.sources[0]
    yard.last_action, yard.last_value, yard.last_why = "infer", 7, "over the cap"
    yard.last_at = datetime.now(timezone.utc).isoformat()
    control.current.sources.append(SourceStatus(name="shed"))
    del control.current.sources[1]
    assert page.shows("Inferred", "action", "yard")
    assert page.part("value", "yard").text == "7"
    assert page.part("state", "shed").text == "starting"
    names = [card.find_element(By.TAG_NAME, "h2").text for card in page.all("section.source")]
    assert "gate" not in names


def test_values_stay_text(page: Page, site: WebServer, control: PretendControl) -> None:
    yard = control.current.sources[0]
    yard.last_value = [HOSTILE, {HOSTILE: HOSTILE}]
    yard.last_why = yard.task = yard.promise = yard.sentence = yard.address = HOSTILE
    yard.model = yard.bundle = yard.modality = yard.state = yard.degraded = HOSTILE
    yard.errors[HOSTILE] = yard.faults[HOSTILE] = 4
    control.current.sources[1].last_value = HOSTILE
    control.current.version = control.current.budget = control.current.reload_sentence = HOSTILE
    control.current.sinks = [SinkStatus(HOSTILE, HOSTILE, HOSTILE)]
    page.open(site.address)
    assert page.shows(HOSTILE, "why", "yard")
    for name in ("promise", "sentence", "address", "faults", "state", "made-of"):
        assert HOSTILE in page.part(name, "yard").text
    assert page.part("value", "gate").text == HOSTILE
    assert HOSTILE in page.part("sinks").text
    assert page.script("return window.owned") is None
    assert page.all('img[src="x"], main script') == []
    assert page.complaints() == []


def test_the_slider_tells_what_to_expect_before_it_is_applied(
    page: Page, site: WebServer, control: PretendControl
) -> None:
    page.open(site.address)
    assert page.shows("accuracy 90 %", "target", "yard")
    apply, slider = page.part("apply", "yard"), page.part("slider", "yard")
    assert not apply.is_enabled()
    slider.send_keys(Keys.ARROW_RIGHT)
    assert page.part("target", "yard").text == "accuracy 95 %"
    assert page.part("now-rate", "yard").text == "83 %"
    assert page.part("then-rate", "yard").text == "74 %"
    assert page.part("then-accuracy", "yard").text == "96.7 %"
    assert page.part("then-recall", "yard").text == "90 %"
    assert page.part("then-bound", "yard").text == "95.4 %"
    assert "9 more of 100 inputs" in page.part("effect", "yard").text
    assert slider.get_attribute("aria-valuetext") == "accuracy 95 %"
    assert control.changed == []
    apply.click()
    assert page.shows("The target is accuracy 95 % now.", "told", "yard")
    assert control.changed == [("yard", "accuracy", 0.95)]
    assert page.shows("Accuracy of at least 95%", "promise", "yard")
    assert page.shows("74 %", "now-rate", "yard")
    assert not apply.is_enabled()


def test_the_slider_sets_a_recall_too_and_can_be_undone(
    page: Page, site: WebServer, control: PretendControl
) -> None:
    page.open(site.address)
    assert page.shows("accuracy 90 %", "target", "yard")
    page.part("measures", "yard").find_elements(By.TAG_NAME, "input")[1].click()
    assert page.part("target", "yard").text == "recall 90 %"
    assert page.part("then-rate", "yard").text == "71 %"
    page.part("undo", "yard").click()
    assert page.part("target", "yard").text == "accuracy 90 %"
    page.part("measures", "yard").find_elements(By.TAG_NAME, "input")[1].click()
    page.part("slider", "yard").send_keys(Keys.ARROW_RIGHT)
    page.part("apply", "yard").click()
    assert page.shows("The target is recall 95 % now.", "told", "yard")
    assert control.changed == [("yard", "recall", 0.95)]


def test_a_target_that_is_refused_says_why(
    page: Page, site: WebServer, control: PretendControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, measure: str, target: float) -> None:
        raise ConfigError(f"{source}: no row for {measure} {target:g} any more")

    monkeypatch.setattr(control, "set_target", refuse)
    page.open(site.address)
    assert page.shows("accuracy 90 %", "target", "yard")
    page.part("slider", "yard").send_keys(Keys.ARROW_RIGHT)
    page.part("apply", "yard").click()
    assert page.shows("not changed: yard: no row for accuracy 0.95 any more", "told", "yard")
    assert page.part("target", "yard").text == "accuracy 95 %"
    assert page.part("apply", "yard").is_enabled()


def test_the_switch_works_by_mouse_and_keyboard(
    page: Page, site: WebServer, control: PretendControl
) -> None:
    page.open(site.address)
    assert page.shows("Filter on", "enabled", "yard")
    switch = page.part("enabled", "yard")
    assert switch.aria_role == "switch"
    assert switch.get_attribute("aria-checked") == "true"
    switch.click()
    assert page.shows("Filter off", "enabled", "yard")
    assert switch.get_attribute("aria-checked") == "false"
    switch.send_keys(Keys.SPACE)
    assert page.shows("Filter on", "enabled", "yard")
    assert control.changed == [("yard", False), ("yard", True)]


def test_the_history_is_drawn_with_axes_and_as_a_table(page: Page, site: WebServer) -> None:
    page.open(site.address)
    assert page.shows("live", "state", "yard")
    plots = page.part("plots", "yard")
    assert until(lambda: len(plots.find_elements(By.TAG_NAME, "svg")) == 4)
    assert len(plots.find_elements(By.CSS_SELECTOR, "rect.inferred")) > 50
    assert plots.find_elements(By.CSS_SELECTOR, "polyline.rate")
    labels = [text.text for text in plots.find_elements(By.CSS_SELECTOR, "svg text")]
    assert {"0", "2,000", "100 %"} <= set(labels)
    assert any(len(label) == 5 and label[2] == ":" for label in labels)
    svg = plots.find_element(By.TAG_NAME, "svg")
    assert svg.accessible_name.startswith("Inputs a minute since ")
    page.script(
        "const box = arguments[0].getBoundingClientRect();"
        "arguments[0].dispatchEvent(new PointerEvent('pointermove',"
        "{clientX: box.right - 10, clientY: box.top + 20}))",
        svg,
    )
    assert "filtered" in plots.find_element(By.CLASS_NAME, "readout").text
    table = page.part("as-table", "yard")
    table.find_element(By.TAG_NAME, "summary").click()
    rows = page.part("rows", "yard")
    assert until(lambda: len(rows.find_elements(By.TAG_NAME, "tr")) > 50)
    page.part("history", "yard").find_elements(By.CSS_SELECTOR, ".spans input")[1].click()
    assert until(lambda: len(rows.find_elements(By.TAG_NAME, "tr")) > 70)


def test_what_a_source_sees_is_shown(page: Page, site: WebServer) -> None:
    page.open(site.address)
    assert page.shows("live", "state", "yard")
    picture = page.part("picture", "yard")
    assert until(lambda: page.script("return arguments[0].naturalWidth", picture) == 640)
    assert picture.accessible_name == "What yard sees"
    assert not page.part("picture", "gate").is_displayed()


def test_nothing_is_asked_of_others_and_the_console_is_clean(
    page: Page, site: WebServer, control: PretendControl
) -> None:
    page.open(site.address)
    assert page.shows("live", "state", "yard")
    control.current.sources[0].counts["infer"] += 1
    assert page.shows("61,331", "infer", "yard")
    assert page.complaints() == []
    assert page.hosts() - {"blob", "data"} == {urlsplit(site.address).netloc}


def test_it_says_when_the_daemon_is_gone_and_when_it_is_back(
    page: Page, site: WebServer, control: PretendControl
) -> None:
    page.open(site.address)
    assert page.shows("live", "state", "yard")
    site.close()
    assert page.shows("The daemon does not answer since", "away")
    assert page.part("health").text == "no answer"
    page.save("desktop-away")
    again = WebServer(control, WebConfig(bind=urlsplit(site.address).netloc))
    again.start()
    try:
        assert page.shows("1 of 3 failing", "health")
        assert not page.part("away").is_displayed()
    finally:
        again.close()


def test_it_asks_nothing_while_nobody_looks(
    page: Page, site: WebServer, control: PretendControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    real = control.status

    def counted() -> object:
        nonlocal asked
        asked += 1
        return real()

    monkeypatch.setattr(control, "status", counted)
    page.open(site.address)
    assert page.shows("live", "state", "yard")
    page.script(
        "Object.defineProperty(document, 'hidden', {configurable: true, get: () => window.away});"
        "window.away = true; document.dispatchEvent(new Event('visibilitychange'))"
    )
    seen = -1

    def still() -> bool:
        nonlocal seen
        before, seen = seen, asked
        page.driver.execute_async_script("setTimeout(arguments[0], 2500)")
        return before == seen == asked

    assert until(still, 30)
    page.script("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    assert until(lambda: asked > seen)


def test_the_token_opens_the_page(page: Page, control: PretendControl, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open-sesame\n")
    web = WebConfig(bind="127.0.0.1:0", token_file=str(tmp_path / "token"))
    server = WebServer(control, web)
    server.start()
    try:
        page.open(server.address)
        page.resize("phone", "dark")
        page.all("#token")[0].send_keys("wrong", Keys.ENTER)
        # Asked at one go: between two questions the next page may have come.
        refused = "return document.querySelector('.wrong')?.innerText ?? ''"
        assert until(lambda: page.script(refused) != "")
        page.save("phone-login")
        page.all("#token")[0].send_keys("open-sesame", Keys.ENTER)
        page.resize("desktop")
        assert page.shows("live", "state", "yard")
        page.part("enabled", "yard").click()
        assert page.shows("Filter off", "enabled", "yard")
        assert control.changed == [("yard", False)]
        assert page.script("return document.cookie") == ""
        assert "open-sesame" not in str(page.driver.get_cookies())
    finally:
        server.close()


CONTRASTS = """
const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const colour = (text) => text.match(/[\\d.]+/g).map(Number);
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const found = colour(getComputedStyle(e).backgroundColor);
    if (found.length < 4 || found[3] > 0.5) return found;
  }
  return [255, 255, 255];
};
const poor = [];
for (const element of document.querySelectorAll("body *")) {
  const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!text || !element.checkVisibility() || element.closest(":disabled, .hidden")) continue;
  const style = getComputedStyle(element);
  const ink = colour(element.namespaceURI.includes("svg") ? style.fill : style.color);
  const pair = [light(ink), light(ground(element))].sort((a, b) => b - a);
  const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
  if (ratio < 4.5) poor.push(`${element.textContent.trim()}: ${ratio.toFixed(2)}`);
}
return poor;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_it_can_be_read_at_every_size_and_in_both_colours(
    page: Page, site: WebServer, size: str, scheme: str
) -> None:
    page.resize(size, scheme)
    page.open(site.address)
    assert page.shows("live", "state", "yard")
    assert until(lambda: len(page.all("#source-yard")) == 1 and len(page.all("svg")) >= 12)
    width = SIZES[size][0]
    assert page.script("return document.documentElement.scrollWidth") <= width
    assert page.script(CONTRASTS) == []
    page.save(f"{size}-{scheme}")
    whole = page.script("return document.documentElement.scrollHeight")
    page.resize(size, scheme, min(whole, 9000))
    page.save(f"{size}-{scheme}-whole")


def test_every_control_has_a_name(page: Page, site: WebServer) -> None:
    page.open(site.address)
    assert page.shows("live", "state", "yard")
    controls = page.all("button, input, a, summary")
    assert len(controls) > 20
    shown = [control for control in controls if control.is_displayed()]
    assert [
        control.get_attribute("outerHTML") for control in shown if not control.accessible_name
    ] == []
