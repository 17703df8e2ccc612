"""The page in a real browser: it opens without a network, its parts work, and a hostile name stays text."""

import base64
import html
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from innervision.cli import main
from innervision.errors import InnerVisionError
from innervision.report.page.write import LARGEST, write_page
from page_runs import CELLS, HOSTILE, IMAGES, LAYERS, write_run

QUIETLY = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,900"),
]
RISING = {layer: 0.5 + 0.05 * layer for layer in LAYERS}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no Chromium with its driver here")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for word in QUIETLY:
            options.add_argument(word)
        options.add_argument(f"--user-data-dir={profile}")
        window = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield window
        finally:
            window.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    names = [HOSTILE + name for name in IMAGES]
    how: dict[str, Any] = {"names": names, "groups": (HOSTILE, "outdoor"), "target": HOSTILE}
    runs = [write_run(root / "a", RISING, **how), write_run(root / "b", dict.fromkeys(LAYERS, 0.45), **how)]
    return write_page(runs, root / "hostile.html", labels=[HOSTILE, "two"])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    how: dict[str, Any] = {"pictures": True, "names": [HOSTILE.replace("/", "|") + name for name in IMAGES]}
    runs = [write_run(root / "a", RISING, **how), write_run(root / "b", dict.fromkeys(LAYERS, 0.45), **how)]
    return write_page(runs, root / "study.html", labels=["one", "two"])


def show(browser: Any, page: Path) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def requests(browser: Any) -> set[str]:
    """The addresses that were asked for since the last call, other than what a page holds itself."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    return {url for url in sent if not url.startswith(("data:", "blob:"))}


def test_it_loads_without_errors_and_without_a_network_and_has_all_curves(browser: Any, study: Path) -> None:
    show(browser, study)
    assert requests(browser) == {study.as_uri()}
    traces = "return document.querySelector('#headline-curves .plot').data.map((trace) => trace.y)"
    drawn = browser.execute_script(traces)
    for expected in (list(RISING.values()), [0.45] * len(LAYERS)):
        assert any(y == pytest.approx(expected) for y in drawn)
    assert len(browser.find_elements("css selector", "#headline-curves .js-plotly-plot")) == 2
    assert len(browser.find_elements("css selector", "#difference-charts .js-plotly-plot")) == 2
    shaded = browser.execute_script("return document.querySelector('#headline-curves .plot').layout.shapes")
    assert [(shape["x0"], shape["x1"]) for shape in shaded] == [(-1.5, -0.5), (-0.5, 0.5)]  # vision, and the projector
    assert study.stat().st_size < LARGEST


def test_runs_and_lines_are_switched_on_and_off(browser: Any, study: Path) -> None:
    show(browser, study)
    count = "return document.querySelector('#headline-curves .plot').data.length"
    both = browser.execute_script(count)
    run, _ = browser.find_elements("css selector", "#run-toggles input")
    run.click()
    one = browser.execute_script(count)
    assert one < both
    assert not browser.find_element("css selector", ".standing[data-run='0']").is_displayed()
    assert "one" not in browser.find_element("id", "scores").text
    run.send_keys(" ")  # by keyboard, too
    assert browser.execute_script(count) == both
    browser.find_element("css selector", "#line-toggles input[data-key='floors']").click()
    assert browser.execute_script(count) < both


def test_the_reference_of_differences_is_chosen(browser: Any, study: Path) -> None:
    show(browser, study)
    plot = "document.querySelector('#difference-charts .plot')"
    value = f"return {plot}.data.at(-1).y.at(-1)"
    text = f"return {plot}.data.at(-1).text.at(-1)"
    assert browser.execute_script(value) == pytest.approx(0.7 - 0.45)
    assert "one less two" in browser.execute_script(text)
    browser.find_element("css selector", "#reference option[value='0']").click()
    assert browser.execute_script(value) == pytest.approx(0.45 - 0.7)
    assert "two less one" in browser.execute_script(text)


def centre(browser: Any, panel: Any) -> int:
    """The grey in the middle of a panel of the explorer, as it is on the screen; above the line of the pair."""
    picture = Image.open(io.BytesIO(panel.screenshot_as_png)).convert("L")
    return int(np.asarray(picture)[picture.height // 4, picture.width * 3 // 4])


def test_the_slider_changes_the_picture(browser: Any, study: Path) -> None:
    show(browser, study)
    slider = browser.find_element("id", "layer")
    browser.execute_script("arguments[0].scrollIntoView()", slider)
    for layer, key in ((4, None), (3, "\ue012"), (2, "\ue012")):  # arrow to the left
        if key:
            slider.send_keys(key)
        assert browser.find_element("id", "layer-name").text == str(layer)
        for run in "01":
            cell = browser.find_element("css selector", f"#panels [data-run='{run}'][data-cell='{layer}'] .cell")
            assert centre(browser, cell) == pytest.approx(20 * CELLS.index(str(layer)), abs=8)
    captions = [each.text for each in browser.find_elements("css selector", "#panels figcaption")]
    assert captions[0].startswith("photograph")
    assert captions[1] == "truth: the known depth"
    assert captions[2].startswith("ceiling: the expert’s own feature")
    caption = browser.find_element("css selector", "#panels [data-run='0'][data-cell='2'] figcaption").text
    assert caption == "one, layer 2: accuracy 0.700"  # of the best image
    browser.find_elements("css selector", "#thumbnails button")[-1].click()
    assert "worst of 12" in browser.find_element("id", "image-title").text
    assert browser.find_element("id", "layer-name").text == "2"  # stays


def test_tables_sort_and_are_given_as_csv_latex_and_parquet(browser: Any, study: Path, tmp_path: Path) -> None:
    show(browser, study)
    column = "#scores tbody tr td:nth-child(4)"
    browser.find_elements("css selector", "#scores thead button")[3].click()
    numbers = [float(cell.text.split()[0]) for cell in browser.find_elements("css selector", column) if cell.text]
    assert numbers == sorted(numbers)
    browser.find_elements("css selector", "#scores thead button")[3].click()
    numbers = [float(cell.text.split()[0]) for cell in browser.find_elements("css selector", column) if cell.text]
    assert numbers == sorted(numbers, reverse=True)
    (tmp_path / "scores.csv").write_text(browser.execute_script("return csv()"))
    table = pd.read_csv(tmp_path / "scores.csv", dtype={"layer": str})
    row = table[(table["run"] == "one") & (table["source"] == "probe") & (table["layer"] == "4")].iloc[0]
    assert row["accuracy"] == pytest.approx(0.7)
    assert row["accuracy images"] == len(IMAGES)
    latex = browser.execute_script("return latex()")
    assert r"one & probe & 4 & 0.700 [" in latex
    assert latex.count(r"\\") == len(table) + 1
    content = browser.execute_script("return DATA.parquet")
    (tmp_path / "scores.parquet").write_bytes(base64.b64decode(content))
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    best = scores[(scores["run"] == "one") & (scores["layer"] == 4) & (scores["source"] == "probe")]
    assert best[best["group"].isna()]["mean"].tolist() == pytest.approx([0.7, 0.7])
    assert set(best["group"].dropna()) == {"indoor", "outdoor"}


def test_a_hostile_name_stays_text(browser: Any, page: Path, study: Path) -> None:
    show(browser, page)
    for details in browser.find_elements("css selector", "details > summary"):
        if details.is_displayed():
            details.click()
    assert browser.title.startswith("What <b>b</b><script>")
    assert HOSTILE in browser.find_element("tag name", "h1").text
    assert HOSTILE in browser.find_element("css selector", "#run-toggles label").text
    assert HOSTILE in browser.find_element("css selector", "#table-target").text
    plotted = browser.execute_script(
        "return [...document.querySelectorAll('#splits text')].map((text) => text.textContent)"
    )
    assert any("<b>b</b><script>" in text for text in plotted)
    assert len(browser.find_elements("tag name", "script")) == 3
    assert browser.find_elements("css selector", "main b, svg script") == []
    show(browser, study)
    assert HOSTILE.replace("/", "|") in browser.find_element("id", "image-title").text
    assert len(browser.find_elements("tag name", "script")) == 3


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(browser: Any, study: Path, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        show(browser, study)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        fits = "!plot.clientWidth || plot.querySelector('svg').clientWidth <= plot.clientWidth"
        charts = f"return [...document.querySelectorAll('.plot')].every((plot) => {fits})"
        assert browser.execute_script(charts)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_colours_follow_the_dark_mode(browser: Any, study: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    show(browser, study)
    line = (
        "return document.querySelector('#headline-curves .plot').data.find((trace) => trace.name === 'one').line.color"
    )
    assert browser.execute_script(line) == "#0072B2"
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:  # the page is told of the change after the call has returned
        WebDriverWait(browser, 10).until(lambda browser: browser.execute_script(line) == "#4DA3E0")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_what_was_found_is_there_without_scripts_and_nothing_is_fetched(study: Path) -> None:
    text = study.read_text()
    assert "read the layers of one and two and predict" in text
    assert "default-src 'none'" in text
    fetched = re.findall(r"""(?:src|href|url)[=(]["']?([^"'> )]*)""", re.sub(r"(?s)<script.*?</script>", "", text))
    assert all(address.startswith(("#", "data:")) for address in fetched)


def test_provenance_gives_commands_versions_and_images_that_were_left_out(tmp_path: Path) -> None:
    settings = {"data": "my data", "workers": 2, "device": None}
    setup = {"device": "cpu (a kind)", "versions": {"torch": "9.8.7"}}
    run = write_run(tmp_path / "a", settings=settings, setup=setup, bad_images={"lost.jpg": "broken"})
    text = write_page([run], tmp_path / "study.html").read_text()
    text = html.unescape(
        re.sub(r"<[^>]+>", " ", text[text.index('<section id="provenance"') : text.index('<section id="cite"')])
    )
    assert f"innervision train --mllm world/tuned --images train --out {run}" in text
    assert f"innervision evaluate depth {run} --data 'my data' --workers 2\n" in text.replace(" \n", "\n")
    assert "--device" not in text
    for part in ("cpu (a kind)", "9.8.7", "lost.jpg", "sha256:val"):
        assert part in text


def test_the_command_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a")
    assert main(["report", str(run), "--out", str(tmp_path / "new/study.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new/study.html")
    assert "innervision train" in (tmp_path / "new/study.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--out", "{folder}"], "is a folder: name the page to write"),
        (["{run}", "{run}", "--out", "x.html"], "is given twice"),
        (["{folder}/none", "--out", "x.html"], "does not exist"),
        (["{run}", "--out", "x.html", "--images", "-1"], "must not be negative"),
        (["{run}", "--out", "x.html", "--data", "depth="], "names no path for depth"),
        (["{run}", "--out", "x.html", "--data", "{folder}/none"], "cannot read"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "a")
    assert main(["report", *(word.format(run=run, folder=tmp_path) for word in words)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "x.html").exists()


ODD: dict[str, dict[str, Any]] = {
    "run.yaml": {"settings.probe": "x", "settings.mllm": "\x1b[31m\u202e<b>", "record.images": [1], "record.setup": 5},
    "scores/depth.json": {
        "plan.probes": "x",
        "plan.experts": ["x"],
        "images": {"a": 5},
        "bad_images": ["x"],
        "plan": 3,
    },
    "pictures/depth.json": {"images": [1], "classes": 5, "probes": ["x"]},
    "train/bad_images.json": {"": 3},
}
"""By a file of a run what a stranger may have put in the place of a value."""


@pytest.mark.parametrize(("file", "key"), [(file, key) for file, changes in ODD.items() for key in changes])
def test_an_odd_run_becomes_a_page_or_an_error_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, key: str
) -> None:
    run = write_run(tmp_path / "a", pictures=True)
    other = write_run(tmp_path / "b", mllm="another")
    path = run / file
    path.parent.mkdir(exist_ok=True)
    content = yaml.safe_load(path.read_text()) if path.exists() else {}
    *outer, last = key.split(".")
    place = content[outer[0]] if outer else content
    place[last] = ODD[file][key]
    path.write_text(json.dumps(place[last] if not last else content))  # JSON is YAML, too
    out = tmp_path / "study.html"
    status = main(["report", str(run), str(other), "--out", str(out)])
    errors = capsys.readouterr().err.strip().splitlines()
    assert (status, out.exists(), len(errors)) in [(0, True, 0), (1, False, 1)]
    assert "\x1b" not in "".join(errors)
    assert status or "\u202e" not in out.read_text()


def test_more_than_seven_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InnerVisionError, match="7 runs at most"):
        write_page([tmp_path / str(number) for number in range(8)], tmp_path / "x.html")
