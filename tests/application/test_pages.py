"""The report, the preview and the comparison in a browser: widths, light and dark, contrast, keys, no requests."""

import json
import shutil

import pytest

import main_compare
import main_contrastive
import main_report
from tests.helpers.browser import PHONE, browser
from tests.helpers.commands import words
from tests.helpers.comparisons import write_run
from tests.helpers.report import nasty_images, run_folder

LONG = "long" * 30  # has no place where a line may break
__all__ = ["browser"]  # the fixture


@pytest.mark.slow  # Chromium loads the page five times
def test_report_in_a_browser(tmp_path, browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    folder = run_folder(tmp_path, name=f"run-{LONG}")
    (folder / "alarms.json").write_text(json.dumps({"alarms": [
        {"name": "collapse", "step": 7, "text": f"the deviation is 0.1 {LONG}", "over": 9}
    ]}))  # fmt: skip
    (folder / "post_mortem.json").write_text(json.dumps({"what": f"the loss is not finite {LONG}", "step": 58,
        "lr": 0.1, "noticed_at_step": 60, "last_finite": {"loss": 1.5}, "indices": list(range(50))}))  # fmt: skip
    (folder / "backbone.safetensors").write_bytes(b"")
    main_report.main([str(folder)])
    page = folder / "report.html"
    browser.check_everywhere(page)

    browser.show(page, 1280, "light")
    driver = browser.driver

    def tip():
        return driver.execute_script("const t = document.getElementById('tip'); return t.hidden ? '' : t.textContent")

    def range_of():
        return driver.execute_script("return range")

    def step():
        return driver.execute_script("return document.querySelector('.legend .at').textContent")

    assert driver.execute_script("return document.querySelectorAll('.chart path.line').length") == 3
    browser.focus(".grid .tile")
    browser.press(Keys.ARROW_RIGHT)
    assert tip() == "b.pngcat"
    assert driver.execute_script("return document.activeElement.tabIndex") == 0
    browser.focus(".points svg")
    browser.press(Keys.ARROW_RIGHT)
    first = tip()
    assert first.startswith("image ")
    browser.press(Keys.ARROW_RIGHT)
    assert tip() not in ("", first)
    browser.focus(".classes button")
    browser.press(Keys.ENTER)
    assert driver.execute_script("return document.querySelectorAll('.points circle.off').length") == 20
    browser.press(Keys.SPACE)
    assert driver.execute_script("return document.querySelectorAll('.points circle.off').length") == 0
    whole = range_of()
    browser.focus(".chart svg")
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert step() == "step 1"
    browser.press("+", "+")
    low, high = range_of()
    assert high - low == pytest.approx((whole[1] - whole[0]) / 4)
    browser.press(Keys.ESCAPE)
    assert range_of() == whole
    chart = driver.find_element("css selector", ".chart svg")
    driver.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", chart)
    drag = ActionChains(driver).move_to_element_with_offset(chart, -60, 0).click_and_hold()
    drag.move_by_offset(80, 0).release().perform()
    assert range_of()[1] - range_of()[0] < (whole[1] - whole[0]) / 2, "a drag zooms"
    browser.focus(".reset")
    browser.press(Keys.ENTER)
    assert range_of() == whole
    browser.focus("summary")
    browser.press(Keys.ENTER)
    assert driver.execute_script("return document.querySelector('details').open")
    browser.check_logs(page)


@pytest.mark.slow  # Chromium loads the page five times
def test_preview_in_a_browser(tmp_path, browser):
    from selenium.webdriver.common.keys import Keys

    for split in ("train", "val"):
        nasty_images(tmp_path / "images" / split)
        shutil.move(tmp_path / "images" / split / '"><script>alert(2)<', tmp_path / "images" / split / LONG)
    shutil.copy(tmp_path / "images" / "train" / LONG / "0.png", tmp_path / "images" / "val" / LONG / f"{LONG}.png")
    (tmp_path / "images" / "train" / LONG / "1.png").unlink()
    argv = words("nnclr", tmp_path, "--data_folder", str(tmp_path / "images"), "--large_size", "16")
    main_contrastive.main(["custom", *argv[1:], "--batch_size", "12", "--preview"])
    page = tmp_path / "preview.html"
    browser.check_everywhere(page)

    browser.show(page, PHONE, "light")
    browser.focus("summary")
    browser.press(Keys.ENTER)
    values = "return [...document.querySelectorAll('details[open] tr')].map((row) => row.textContent)"
    assert browser.driver.execute_script(values)[-1].endswith("19"), "the numbers of a chart without a mouse"
    pointed = "return [...document.querySelectorAll('svg')].filter((n) => !n.closest('figure').querySelector('table'))"
    assert browser.driver.execute_script(pointed) == []
    browser.check_logs(page)


@pytest.mark.slow  # Chromium loads the page six times
def test_comparison_in_a_browser(tmp_path, browser):
    from selenium.webdriver.common.keys import Keys

    runs = [write_run(tmp_path / f"run-{LONG}"), write_run(tmp_path / "b", 1)]
    runs += [write_run(tmp_path / "c", lr=0.1, name=f"<b>{LONG}")]
    page = tmp_path / "comparison.html"
    main_compare.main([*map(str, runs), "--html", str(page)])
    browser.check_everywhere(page)

    driver = browser.driver
    for scheme in ("light", "dark"):
        browser.show(page, 1280, scheme)
        browser.focus("button")
        browser.press(Keys.ENTER)
        hidden = driver.execute_script("return document.querySelectorAll('path[style*=\"display: none\"]').length")
        assert hidden == 2 * 3, "two seeds, three metrics"
        assert browser.faint_texts() == []
        browser.press(Keys.SPACE)
        assert driver.execute_script("return document.querySelector('[style*=\"display: none\"]')") is None
    browser.focus("svg")
    browser.press(Keys.HOME)
    said = "return document.querySelector('output').textContent"
    first = driver.execute_script(said)
    assert first.count("at step 9") == 3
    browser.press(Keys.END, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    assert driver.execute_script(said) not in ("", first)
    browser.focus("summary")
    browser.press(Keys.ENTER)
    assert driver.execute_script("return document.querySelector('details').open")
    browser.check_logs(page)
