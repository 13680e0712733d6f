"""Chromium without a window, and what every page must keep in it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
PHONE = 390
# Shared by the scripts below: colours as they are painted, transparent ones over what is behind them.
COLOURS = """
const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
const context = canvas.getContext("2d", { willReadFrequently: true });
const rgba = (color) => {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].map((v) => v / 255);
};
const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1];
const opacity = (node) => node === null ? 1 : getComputedStyle(node).opacity * opacity(node.parentElement);
const behind = (node) => {
  if (node === null) return [1, 1, 1, 1];
  return over(rgba(getComputedStyle(node).backgroundColor), behind(node.parentElement));
};
const light = (c) => c.slice(0, 3).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const contrast = (node, color) => {
  const back = behind(node), front = rgba(color);
  front[3] *= opacity(node);
  const [a, b] = [light(over(front, back)), light(back)].sort((p, q) => q - p);
  return (a + 0.05) / (b + 0.05);
};
"""
FAINT_TEXTS = """
const bad = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest("script, style, noscript")) continue;
  if (node.closest("svg") && node.tagName !== "text") continue;
  const style = getComputedStyle(node), ratio = contrast(node, node.closest("svg") ? style.fill : style.color);
  if (ratio < 4.5) bad.push(`${node.tagName} ${node.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
}
return bad;
"""
TOO_WIDE = """
const page = document.documentElement;
if (page.scrollWidth <= arguments[0] && innerWidth === arguments[0]) return [];
const clips = (n) => getComputedStyle(n).overflowX !== "visible";
const wide = [...document.querySelectorAll("body *")].filter((n) => n.scrollWidth > n.clientWidth + 1 && !clips(n));
const name = (n) => `${n.tagName}.${n.className} ${n.textContent.trim().slice(0, 30)}`;
return [`${page.scrollWidth} px`, ...wide.map(name)];
"""
# What a mouse can use: elements that act, take the focus, or scroll by themselves.
CONTROLS = """
const scrolls = (n) => /auto|scroll/.test(getComputedStyle(n).overflow) &&
  (n.scrollWidth > n.clientWidth + 1 || n.scrollHeight > n.clientHeight + 1) && !n.querySelector("a, button, summary");
const acts = (n) => n.matches("a[href], button, summary, input, select, textarea, [tabindex='0']") || scrolls(n);
const controls = [...document.querySelectorAll("body *")].filter((n) => n.checkVisibility() && acts(n));
"""
FOCUS = """
const node = document.activeElement, style = getComputedStyle(node), box = node.getBoundingClientRect();
return {
  place: controls.indexOf(node),
  name: `${node.tagName}.${node.getAttribute("class")} ${node.textContent.trim().slice(0, 30)}`,
  outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
  contrast: contrast(node.parentElement ?? node, style.outlineColor),
  seen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
};
"""
# The browser's own pages and what it asks of its extensions are no requests of the page.
OWN = ("data:", "chrome:", "chrome-extension:", "about:")


class Browser:
    """A page in headless Chromium; `driver` is Selenium's."""

    def __init__(self, chromium: str, service: str):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.binary_location = chromium
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
        self.errors: list[str] = []
        self.requests: list[str] = []

    def show(self, page: Path, width: int, scheme: str) -> None:
        """Open a page at a width in CSS pixels, light or dark, without motion; its details are open."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        features += [{"name": "prefers-reduced-motion", "value": "reduce"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(page.as_uri())
        self._read_logs(page.as_uri())

    def script(self, text: str, *arguments: object):
        """The result of a script that may use the functions of COLOURS and the list of CONTROLS."""
        return self.driver.execute_script(COLOURS + CONTROLS + text, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys, one after another, where the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def focus(self, selector: str) -> None:
        self.driver.execute_script("document.querySelector(arguments[0]).focus({preventScroll: true})", selector)

    def open_details(self) -> None:
        self.driver.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")

    def faint_texts(self) -> list[str]:
        """Texts whose contrast to what is behind them is below 4.5, with that contrast."""
        found: list[str] = self.script(FAINT_TEXTS)
        return found

    def check_everywhere(self, page: Path) -> None:
        """At both widths, light and dark: nothing is wider than the screen, every text can be read."""
        for width in WIDTHS:
            for scheme in SCHEMES:
                self.show(page, width, scheme)
                self.open_details()
                assert self.script(TOO_WIDE, width) == [], f"wider than {width} px"
                assert self.faint_texts() == [], f"contrast below 4.5 where it is {scheme}"
                self.check_tab_key()

    def check_tab_key(self) -> None:
        """The tab key stops at every control in the order of the page, and one sees where."""
        from selenium.webdriver.common.keys import Keys

        count = self.script("return controls.length")
        self.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0);")
        for place in range(count):
            self.press(Keys.TAB)
            stop = self.script(FOCUS)
            assert stop["place"] == place, f"after control {place - 1} of {count} comes {stop['name']}"
            assert stop["outline"] >= 2, f"no outline around {stop['name']}"
            assert stop["contrast"] >= 3, f"a faint outline around {stop['name']}"
            assert stop["seen"], f"{stop['name']} has the focus outside the screen"

    def check_logs(self, page: Path) -> None:
        """The page has logged nothing and asked for nothing."""
        self._read_logs(page.as_uri())
        found = self.errors + self.requests
        self.errors, self.requests = [], []
        assert found == []

    def _read_logs(self, page: str) -> None:
        self.errors += [entry["message"] for entry in self.driver.get_log("browser")]
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        self.requests += [url for url in asked if url != page and not url.startswith(OWN)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; skips with a reason where there is none."""
    chromium, service = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and service):
        pytest.skip("chromium and chromedriver are not installed")
    pytest.importorskip("selenium.webdriver", reason="selenium is in requirements-dev.txt")
    opened = Browser(chromium, service)
    yield opened
    opened.driver.quit()
