"""The page of all models is one file that needs nothing else, and works in a browser."""

import html.parser
import json

import pytest

from hybridlm import gallery
from hybridlm.gallery.page import COLUMNS, page
from tests.browser import NAMES, browser, installed
from tests.gallery.sheets import ROOT, sheet_of

pytestmark = pytest.mark.xdist_group("gallery")  # they share the sheets

FEW = ("kimi_linear_48b_a3b", "falcon_h1_7b", "llama_3_8b", "nemotron_h_8b", "gemma_3_27b")
SCREENS = [(w, h, scheme) for w, h in ((1280, 900), (390, 844)) for scheme in ("light", "dark")]
GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 26)"}

needs_browser = pytest.mark.skipif(
    installed() is None, reason=f"no browser is installed: {', '.join(NAMES)}"
)


class Elements(html.parser.HTMLParser):
    """The attributes of all elements, and the text of those that are scripts, by their id."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self._open = dict(attrs).get("id", "code")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open is not None:
            self.scripts[self._open] = self.scripts.get(self._open, "") + data


@pytest.fixture(scope="module")
def few():
    return page(map(sheet_of, FEW))


def data_of(text):
    return json.loads(Elements(text).scripts["data"])


def test_the_page_loads_nothing(few):
    """No element of it has an address but the empty icon, and its style has none either."""
    elements = Elements(few)
    addresses = [v for _, a in elements.found for k, v in a.items() if k in ("src", "href")]
    assert addresses == ["data:,"]
    assert not any(word in few for word in ("url(", "@import", "fetch(", "import("))


def test_the_data_cannot_end_their_element(few):
    assert "<" not in Elements(few).scripts["data"]


def test_the_page_has_every_model_with_the_same_fields(few):
    models = data_of(few)["models"]
    assert [m["name"] for m in models] == list(FEW)
    labels = [[label for label, *_ in m["fields"]] for m in models]
    assert all(found == labels[0] for found in labels)
    for model in models:
        assert len(model["strip"]) == sheet_of(model["name"]).config.depth
        assert {key for key, *_ in COLUMNS} <= set(model["order"])


class Tab:
    """A page of models in a browser."""

    def __init__(self, tab):
        self.tab, self.run = tab, tab.run

    def shown(self) -> list[str]:
        return self.run(
            "[...document.querySelectorAll('#models tbody tr')].map(r => r.dataset.name)"
        )

    def search(self, text: str) -> list[str]:
        self.run(
            f"document.getElementById('search').value = {json.dumps(text)};"
            "document.getElementById('search').dispatchEvent(new Event('input'))"
        )
        return self.shown()

    def press(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def go(self, hash_: str) -> None:
        self.run(
            "new Promise(done => { addEventListener('hashchange', () => setTimeout(done), {once: true});"
            f" location.hash = {json.dumps(hash_)} }})"
        )

    def heading(self) -> str | None:
        """The heading of the dialog, None where it is closed."""
        return self.run(
            "document.getElementById('sheet').open"
            " ? document.getElementById('sheet-title').textContent : null"
        )

    def too_wide(self) -> list[str]:
        """What sticks out of the window to the right and cannot be scrolled to in a frame."""
        return self.run(
            "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, thead')"
            " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )


def check_use(tab: Tab, models: list[dict], all_sheets: bool) -> None:
    """Sorts, searches, filters, opens sheets and compares, as a reader does."""
    by_name = {m["name"]: m for m in models}
    for key, *_ in COLUMNS:
        for _ in range(2):
            tab.press(f"#models th[data-key={key}] button")
            down = tab.run(f"document.querySelector('th[data-key={key}]').ariaSort") == "descending"
            values = [by_name[name]["order"][key] for name in tab.shown()]
            if key != "title" and key != "mix":  # text is in the order of the reader's language
                assert values == sorted(values, reverse=down), key
        assert len(values) == len(models)
    for family in {f for m in models for f in m["families"]}:
        tab.press(f"#chips [data-family='{family}']")
        assert set(tab.shown()) == {m["name"] for m in models if family in m["families"]}
        tab.press(f"#chips [data-family='{family}']")
    assert set(tab.search("mamba-2")) == {m["name"] for m in models if "mamba-2" in m["search"]}
    assert tab.search("no such model") == [] and not tab.run(
        "document.getElementById('none').hidden"
    )
    assert len(tab.search("")) == len(models)
    for model in models if all_sheets else models[:2]:
        tab.go(f"model={model['name']}")
        assert tab.heading() == model["title"]
        assert tab.run("document.querySelectorAll('#body svg.drawing').length") == 1
        links = tab.run("[...document.querySelectorAll('#body a')].map(a => a.href)")
        assert f"https://huggingface.co/{model['upstream']}" in links
        assert tab.too_wide() == []
        tab.press("#close")
    tab.go(f"model={models[0]['name']}")
    tab.tab.send("Input.dispatchKeyEvent", type="keyDown", key="Escape", windowsVirtualKeyCode=27)
    assert tab.heading() is None
    first, second, *_ = tab.shown()
    for name in (first, second):
        tab.press(f"#models tr[data-name={name}] input")
    tab.press("#compare")
    tab.run("new Promise(done => setTimeout(done))")
    assert tab.heading() == f"{by_name[first]['title']} and {by_name[second]['title']}"
    a, b = (by_name[name]["fields"] for name in (first, second))
    differing = [x[0] for x, y in zip(a, b, strict=True) if x[1] != y[1]]
    tab.press("#only")
    visible = tab.run(
        "[...document.querySelectorAll('#body tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[0].textContent)"
    )
    assert visible == differing
    assert tab.too_wide() == []
    tab.press("#close")
    assert tab.heading() is None


def used(tab, text, path, width, height, scheme, all_sheets):
    """Opens the page, uses it, and checks that the browser complained of nothing."""
    path.write_text(text, encoding="utf-8")
    tab.open(path.as_uri(), width, height, scheme)
    view = Tab(tab)
    models = data_of(text)["models"]
    assert set(view.shown()) == {m["name"] for m in models}
    colours = "getComputedStyle(document.body).backgroundColor"
    assert tab.run(colours) == GROUND[scheme]
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert view.too_wide() == []
    check_use(view, models, all_sheets)
    view.press("#scheme")
    view.press("#scheme")
    assert tab.run(colours) == GROUND["dark"]
    assert tab.messages == []
    assert {request.partition("#")[0] for request in tab.requests} <= {path.as_uri(), "data:,"}


@needs_browser
def test_the_page_works_on_a_phone(few, tmp_path):
    with browser(tmp_path / "profile") as tab:
        used(tab, few, tmp_path / "few.html", 390, 844, "light", False)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "scheme"), SCREENS)
def test_the_page_of_all_models_works(tmp_path, width, height, scheme):
    text = page(map(sheet_of, gallery.names(ROOT / "configs" / "gallery")))
    with browser(tmp_path / "profile") as tab:
        used(tab, text, tmp_path / "all.html", width, height, scheme, width < 600)
