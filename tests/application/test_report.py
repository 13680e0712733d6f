"""The report of whole commands: its parts, names that would run, keys and widths in a browser."""

import json

import pytest

import main_contrastive
import main_linear
import main_report
from tests.helpers.commands import TINY, words
from tests.helpers.report import Page, browser, nasty_images, run_folder
from utils.errors import UserError


def page_of(folder):
    return Page((folder / "report.html").read_text())


@pytest.mark.usefixtures("no_embedding")
def test_commands_leave_a_report(tmp_path, capsys):
    """Pretraining, evaluation and main_report.py on class folders whose names are HTML."""
    nasty_images(tmp_path / "images" / "train")
    nasty_images(tmp_path / "images" / "val")
    few = ["--data_folder", str(tmp_path / "images"), "--large_size", "16", "--batch_size", "20", "--knn_k", "5"]
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--run_id", "r"])
    page, folder = page_of(tmp_path / "r"), tmp_path / "r"
    assert len(page.of("script")) == 2
    assert not page.of("img")
    assert "finished" in page.text("span")
    assert page.text("h2").startswith("Curves Nearest neighbours Training views Alarms")
    cells = [a for a in page.of("span") if "data-name" in a]
    assert {a["data-label"] for a in cells} >= {"<img src=x onerror=alert(1)>", '"><script>alert(2)<'}
    settings = (folder / "report.html").read_text().split('id="settings"')[1].split("<details>")[0]
    assert all(f"<code>{flag}</code>" in settings for flag in ("--epochs", "--knn_every", "--large_size"))
    assert "<code>--seed</code>" not in settings, "it is at its default"
    assert "warning" not in capsys.readouterr().out
    before = (folder / "report.html").read_text()
    for name in ("views.json", "summary.json", "report.html"):
        (folder / name).unlink()
    main_report.main([str(folder)])
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert "Training views" in before
    assert "Training views" not in page_of(folder).text()
    main_linear.main(["custom", TINY[1], *few[:2], "--pretrained_feature_extractor", str(folder), "--evaluation",
                      "knn", "pictures", "--knn_k", "5", "--baselines", "--output", str(tmp_path),
                      "--run_id", "e"])  # fmt: skip
    page = page_of(tmp_path / "e")
    assert "raw pixels" in page.text("th")
    assert "kNN 5" in page.text("th")
    assert page.text("h2").count("Nearest neighbours: ") == 3
    assert len(page.of("img")) == 3, "the confusion matrices"
    assert "--baselines" in page.text("code")


def test_report_of_a_command_that_no_version_knows_any_more(tmp_path, capsys):
    folder = run_folder(tmp_path)
    args = json.loads((folder / "args.json").read_text())
    args["argv"] += ["--no_such_flag"]
    (folder / "args.json").write_text(json.dumps(args))
    main_report.main([str(folder)])
    assert "no_such_flag" in capsys.readouterr().out
    assert "--no_such_flag" in page_of(folder).text("code")
    with pytest.raises(UserError, match="does not exist"):
        main_report.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="unknown argument|unrecognized"):
        main_report.main([str(folder), "--fast"])


SIZES = "return [document.documentElement.scrollWidth, innerWidth]"
CONTRAST = """
const channels = (c) => {
  const p = c.match(/[\\d.]+/g).map(Number);
  return p.length > 3 && p[3] === 0 ? null : p.slice(0, 3);
};
const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (node) => channels(getComputedStyle(node).backgroundColor) ?? behind(node.parentElement);
const bad = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest("script, style, noscript")) continue;
  const style = getComputedStyle(node), front = channels(node.closest("svg") ? style.fill : style.color);
  const [a, b] = [light(front), light(behind(node))].sort((p, q) => q - p);
  if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(`${node.tagName} ${node.textContent.slice(0, 30)} ${front}`);
}
return bad;
"""


@pytest.mark.slow  # Chromium starts, and loads the page four times
def test_page_in_a_browser(tmp_path):
    """Widths, light and dark, keys, names with HTML: no error, no dialog, nothing wider than the screen."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    folder = run_folder(tmp_path, name="run-" + "long" * 30)
    (folder / "alarms.json").write_text(json.dumps({"alarms": [
        {"name": "collapse", "step": 7, "text": "the deviation is 0.1 " + "x" * 200, "over": 9}
    ]}))  # fmt: skip
    main_report.main([str(folder)])
    driver = browser()

    def tip():
        return driver.execute_script("const t = document.getElementById('tip'); return t.hidden ? '' : t.textContent")

    def press(selector, *keys):
        driver.execute_script("document.querySelector(arguments[0]).focus({preventScroll: true})", selector)
        ActionChains(driver).send_keys(*keys).perform()

    def range_of():
        return driver.execute_script("return range")

    try:
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == 390}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
                feature = {"name": "prefers-color-scheme", "value": scheme}
                driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
                driver.get((folder / "report.html").as_uri())
                content, screen = driver.execute_script(SIZES)
                assert content <= screen == width, f"{content} px at {width}"
                assert driver.execute_script(CONTRAST) == [], scheme
        assert driver.execute_script("return document.querySelectorAll('.chart path.line').length") == 3
        press(".grid .tile", Keys.ARROW_RIGHT)
        assert tip() == "b.pngcat"
        assert driver.execute_script("return document.activeElement.tabIndex") == 0
        outline = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", "the focus is visible"
        press(".points svg", Keys.ARROW_RIGHT)
        first = tip()
        assert first.startswith("image ")
        ActionChains(driver).send_keys(Keys.ARROW_RIGHT).perform()
        assert tip() not in ("", first)
        whole = range_of()
        press(".chart svg", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        assert driver.execute_script("return document.querySelector('.legend .at').textContent") == "step 1"
        ActionChains(driver).send_keys("+", "+").perform()
        low, high = range_of()
        assert high - low == pytest.approx((whole[1] - whole[0]) / 4)
        ActionChains(driver).send_keys(Keys.ESCAPE).perform()
        assert range_of() == whole
        chart = driver.find_element("css selector", ".chart svg")
        driver.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", chart)
        ActionChains(driver).move_to_element_with_offset(chart, -60, 0).click_and_hold().move_by_offset(
            80, 0
        ).release().perform()
        assert range_of()[1] - range_of()[0] < (whole[1] - whole[0]) / 2, "a drag zooms"
        driver.find_element("css selector", ".reset").click()
        assert range_of() == whole
        driver.find_element("css selector", ".classes button").click()
        assert driver.execute_script("return document.querySelectorAll('.points circle.off').length") == 20
        assert [e["message"] for e in driver.get_log("browser")] == []
    finally:
        driver.quit()
