"""The page in a real browser: every view, the filters, the keyboard, attacks.

The `reader` fixture holds every test to this besides: no complaint in the console, no
dialog, no attack that ran. Screenshots of the views are kept (conftest.py says where).
"""

import asyncio
import re
import shutil
import threading

import pytest
from browsing import COMPARED, TRAINING, each_view, fragment, settle
from made_runs import ATTACK, FILE_ATTACK, write_run

from mappa_jax.report.build import Builder
from mappa_jax.report.live import serve

WHOLE = ("overview", "episode", "compare", "config")  # the others are long
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
TEAM = "#/e/eval_000004_sums:3"
POISONED = "#/e/step_000001:11"


def count(tab):
    """(shown, all) episodes of the list."""
    numbers = re.findall(r"[\d,]+", tab.inner_text("#count"))
    numbers = [int(n.replace(",", "")) for n in numbers]
    return numbers[0], numbers[-1]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view_renders(reader, page, keep, theme):
    tab = reader(page, color_scheme=theme)
    assert tab.get_attribute("html", "data-theme") == theme
    for name in each_view(tab):
        assert tab.text_content("main h1")
        keep(tab, f"{name}_{theme}", full_page=name in WHOLE)


def test_a_phone_needs_no_scrolling_sideways(reader, page, keep):
    tab = reader(page, **PHONE)
    for name in each_view(tab):
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, name
        keep(tab, f"{name}_phone", full_page=name in WHOLE)


def test_the_verdict_stands_at_the_top(reader, page):
    tab = reader(page)
    said = tab.inner_text("main h1")
    assert "The team got better" in said
    assert re.search(r": \+0\.75 \[\+0\.\d\d, \+[01]\.\d\d\]", said)
    assert "no control" in tab.inner_text(".verdict").lower()
    assert "paired" in tab.inner_text("table")


def test_curves_are_drawn_when_they_come_into_sight(reader, page):
    tab = reader(page, "#/curves")
    settle(tab)
    drawn = tab.locator(".main-svg").count()
    assert 0 < drawn
    last = tab.locator(".plot").last
    assert last.locator(".main-svg").count() == 0
    last.scroll_into_view_if_needed()
    last.locator(".main-svg").first.wait_for()
    assert "solver" in tab.locator("figure[data-panel=score] .legend").text_content()
    tab.click("figure[data-panel=score] summary")
    rows = tab.locator("figure[data-panel=score] tbody tr")
    rows.nth(3).wait_for()
    assert rows.count() == 4
    assert "3.4" in rows.first.text_content()


FILTERS = [
    ("select[name=set]", "training", 48),
    ("select[name=kind]", "short", None),
    ("select[name=outcome]", "right", None),
    ("input[name=from]", "4", 12 + 12),
    ("input[name=task]", "train-3", 8),
    ("input[name=low]", "9", None),
    ("input[name=missing]", True, None),
    ("input[name=judge]", True, None),
    ("input[name=credit]", True, None),
    ("input[name=tools]", True, None),
    ("input[name=failed]", True, 1),
]


@pytest.mark.parametrize("where, value, expected", FILTERS)
def test_filters(reader, page, made, read_json, where, value, expected):
    """The numbers are checked against the index, counted here in another way."""
    tab = reader(page, "#/episodes")
    everything, total = count(tab)
    assert everything == total == 72
    if value is True:
        tab.check(where)
    elif where.startswith("select"):
        tab.select_option(where, value)
    else:
        tab.fill(where, value)
    found, _ = count(tab)
    name = re.search(r"name=(\w+)", where)[1]
    assert found == counted(read_json(Builder(made).build().index), name, value)
    assert 0 < found < total
    assert expected in (None, found)
    assert f"{name}=" in fragment(tab)
    tab.reload()
    tab.wait_for_selector("#count")
    assert count(tab)[0] == found  # the address holds the filter
    tab.click("button[type=reset]")
    assert count(tab)[0] == total


def counted(index, name, value):
    """How many episodes a filter leaves, from the index."""
    files = [index["files"][number] for number in index["file"]]
    ends = [sum(index["actions"][: i + 1]) for i in range(len(files))]
    scores = [
        index["score"][end - n : end]
        for n, end in zip(index["actions"], ends, strict=True)
    ]
    tests = {
        "set": lambda i: files[i]["set"] == value,
        "kind": lambda i: index["kinds"][index["kind"][i]] == value,
        "outcome": lambda i: index["outcome"][i] == 1.0,
        "from": lambda i: files[i]["step"] >= 4,
        "task": lambda i: value in index["tasks"][index["task"][i]],
        "low": lambda i: any(s is not None and s >= 9 for s in scores[i]),
    }
    wanted = tests.get(name, lambda i: bool(index[name][i]))
    return sum(map(wanted, range(len(files))))


def test_an_agent_and_a_range_of_scores_are_of_one_action(reader, page):
    tab = reader(page, "#/episodes?agent=coder&low=8.5")
    assert count(tab)[0] == 0
    assert "No episode matches" in tab.inner_text("#list")
    tab.select_option("select[name=agent]", "verifier")
    assert count(tab)[0] > 0


def test_the_keyboard_alone_reads_a_run(reader, page):
    tab = reader(page)
    tab.keyboard.press("3")
    tab.wait_for_selector("#list")
    for key in ("j", "j", "k", "ArrowDown"):
        tab.keyboard.press(key)
    assert tab.get_attribute(".row[aria-selected=true]", "aria-posinset") == "2"
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".action")
    assert fragment(tab) == "#/e/step_000001%3A1"
    tab.keyboard.press("]")
    tab.wait_for_function("() => location.hash.endsWith('3A2')")
    tab.wait_for_selector(".action")
    for place in (0, 1):
        tab.keyboard.press("j")
        assert fragment(tab).endswith(f"3A2/{place}")
        assert tab.evaluate("document.activeElement.dataset.action") == str(place)
    tab.keyboard.press("e")
    assert tab.evaluate(
        "[...document.querySelectorAll('main details')].every(d => d.open)"
    )
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#list")
    assert tab.get_attribute(".row[aria-selected=true]", "data-key") == "step_000001:2"
    tab.keyboard.press("/")
    tab.keyboard.type("train-3")
    assert count(tab)[0] == 8
    tab.keyboard.press("Escape")
    tab.keyboard.press("?")
    assert tab.is_visible("dialog") and "Esc" in tab.inner_text("dialog")
    tab.keyboard.press("Escape")
    assert not tab.is_visible("dialog")
    tab.keyboard.press("4")
    tab.wait_for_selector("main table")


def test_the_next_episode_where_credit_and_outcome_disagree(reader, page):
    """Credit went to the end of every judge's mistake: sample 0, wrong, score 9."""
    tab = reader(page, "#/e/step_000001:0")
    seen = set()
    for _ in range(4):
        before = fragment(tab)
        tab.keyboard.press("n")
        tab.wait_for_function(f"() => location.hash !== {before!r}")
        tab.wait_for_selector(".action")
        assert "credit ≠" in tab.inner_text(".head")
        assert "✗ wrong" in tab.inner_text(".head")
        end = tab.locator(".action").last
        assert end.locator(".advantage.good").count() == 1
        seen.add(fragment(tab))
    assert len(seen) == 4
    before = fragment(tab)
    tab.keyboard.press("N")
    tab.wait_for_function(f"() => location.hash !== {before!r}")
    assert fragment(tab) in seen


def test_an_episode_is_read_as_a_conversation(reader, page, keep):
    tab = reader(page, "#/e/step_000001:3")
    cards = tab.locator(".action")
    assert [cards.nth(i).locator("h3").inner_text() for i in range(3)] == [
        *("solver", "coder", "verifier")
    ]
    solver, coder = cards.nth(0), cards.nth(1)
    assert "Adding the tens" not in solver.inner_text()  # thinking is folded
    solver.locator(".thinking summary").click()
    assert "Adding the tens" in solver.inner_text()
    solver.locator(".prompt summary").click()
    assert "You are one of a team." in solver.inner_text()
    text = coder.inner_text()
    for part in ("ZeroDivisionError", "exit status 1", "table.csv (changed)"):
        assert part in text
    assert "out.csv (new, empty)" in text
    assert "print(1 / 0)" in text and "It failed." in text
    assert coder.locator(".advantage.bad").count() == 1
    tab.keyboard.press("t")
    tokens = solver.locator(".tokens span")
    assert tokens.count() == len("The sum is 63.")  # a token is a character
    colours = solver.evaluate(
        "n => [...n.querySelectorAll('.tokens span')].map(s => [s.title[0],"
        " getComputedStyle(s).backgroundColor])"
    )
    by_sign = {}
    for sign, colour in colours:
        by_sign.setdefault(sign, set()).add(re.sub(r"[,/ ]+[\d.]+\)$", "", colour))
    assert len(by_sign["+"]) == len(by_sign["−"]) == 1
    assert by_sign["+"] != by_sign["−"]
    keep(tab, "episode_tokens", full_page=True)
    tab.keyboard.press("t")
    assert not solver.locator(".tokens").is_visible()


def test_a_missing_verdict_is_said_and_is_no_score(reader, page):
    tab = reader(page, "#/e/step_000001:0")
    coder = tab.locator(".action").nth(1)
    assert "no verdict: timeout" in coder.inner_text()
    assert "masked: no verdict" in coder.inner_text()
    assert coder.locator(".score").count() == 0


def test_a_link_leads_to_an_action(reader, page):
    tab = reader(page, f"{TRAINING}/2")
    assert tab.evaluate("document.activeElement.dataset.action") == "2"
    assert tab.locator(".action.here h3").inner_text() == "verifier"
    link = tab.locator(".action").nth(1).locator("a.anchor")
    link.click()
    tab.wait_for_selector(".action.here[data-action='1']")
    assert fragment(tab) == "#/e/step_000001%3A4/1"
    other = reader(page, fragment(tab))
    assert other.locator(".action.here h3").inner_text() == "coder"


@pytest.mark.parametrize(
    "where", ["#/e/step_000099:0", "#/e/%E0%A4%A", "#/e/", "#/compare/x", "#/nothing"]
)
def test_an_address_that_leads_nowhere_says_so(reader, page, where):
    tab = reader(page, where)
    said = tab.inner_text("main h1")
    assert said == "No such episode" or "The team got" in said


def test_before_and_after_stand_side_by_side(reader, page):
    tab = reader(page, TEAM)
    tab.keyboard.press("c")
    tab.wait_for_selector(".pair")
    assert fragment(tab).replace("%3A", ":") == COMPARED
    left, right = (tab.locator(".sides section").nth(i) for i in (0, 1))
    assert "wrong" in left.inner_text() and "right" in right.inner_text()
    boxes = [tab.locator(".pair > div").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    assert tab.locator(".pair").count() == 3
    right.locator("select").select_option(index=0)
    tab.wait_for_function("() => !location.hash.includes('000004')")


def test_planted_scripts_are_shown_as_text(reader, page, keep):
    """`reader` sees to it that none has run."""
    tab = reader(page, POISONED)
    tab.keyboard.press("e")
    text = tab.inner_text("main")
    places = ("h1", ".prompt", ".thinking", ".output", ".tool", ".rationale", ".files")
    for place in places:
        shown = tab.locator(f"main {place}").first.text_content()
        assert (FILE_ATTACK if place == ".files" else ATTACK) in shown, place
    assert text.count(ATTACK) > 20
    made = "main img, main svg, main script, main style, main iframe"
    assert tab.locator(made).count() == 0
    keep(tab, "attacks")
    for width in (1280, 390):  # long texts break, whatever they are
        tab.set_viewport_size({"width": width, "height": 844})
        wide = "document.documentElement.scrollWidth"
        assert tab.evaluate(wide) <= width
    tab.set_viewport_size({"width": 1280, "height": 900})
    for link in tab.query_selector_all("main a"):
        assert link.get_attribute("href").startswith("#/")
    tab.keyboard.press("t")
    tab.keyboard.press("c")
    tab.wait_for_selector(".pair")
    for fragment_ in ("#/config", "#/episodes?task=poison", "#/overview"):
        tab.goto(page.as_uri() + fragment_)
        tab.wait_for_timeout(100)
    assert "<b>run" in tab.inner_text("#name")
    # Clicking what looks like a link does nothing either.
    tab.goto(page.as_uri() + POISONED)
    tab.locator(".output").first.click()


def test_the_policy_would_stop_a_script_that_got_in(chromium, page):
    """The second wall: markup that does get into the page still cannot run."""
    context = chromium.new_context()
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.wait_for_selector("main h1")
    tab.evaluate(
        "() => { const s = document.createElement('script');"
        " s.textContent = 'window.pwned = 6'; document.body.append(s);"
        " document.body.insertAdjacentHTML('beforeend',"
        " `<img src=x onerror='window.pwned = 7'>`); }"
    )
    tab.wait_for_timeout(200)
    assert tab.evaluate("window.pwned") is None
    context.close()


def test_a_served_page_follows_the_run_and_keeps_the_place(reader, tmp_path):
    folder = write_run(tmp_path / "run", steps=2, attack=False)
    with in_thread(Builder(folder)) as address:
        tab = reader(address, "#/e/step_000002:3/1")
        tab.locator(".thinking summary").first.click()
        list_tab = reader(address, "#/episodes?set=training")
        before = count(list_tab)
        shutil.copy(
            folder / "trajectories" / "step_000002.jsonl",
            folder / "trajectories" / "step_000003.jsonl",
        )
        text = "document.querySelector('#count').textContent"
        list_tab.wait_for_function(f"() => !{text}.includes('{before[1]}')")
        assert count(list_tab) == (before[0] + 12, before[1] + 12)
        tab.wait_for_function(
            "() => document.querySelector('#live').textContent.includes('read at')"
        )
        assert fragment(tab) == "#/e/step_000002%3A3/1".replace("%3A", ":")
        assert tab.locator(".thinking").first.get_attribute("open") is not None
        path = folder / "metrics.jsonl"
        path.write_text("{broken\n" + path.read_text())
        tab.wait_for_selector("#banner:not([hidden])")
        assert "metrics.jsonl:1" in tab.inner_text("#banner")


class in_thread:  # noqa: N801
    """Serves a builder's report from a thread; the context is its address."""

    def __init__(self, builder):
        self._builder, self._ready = builder, threading.Event()

    def __enter__(self):
        def run():
            self._loop = asyncio.new_event_loop()
            self._work = self._loop.create_task(serve(self._builder, 0, self._started))
            try:
                self._loop.run_until_complete(self._work)
            except asyncio.CancelledError:
                self._loop.close()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert self._ready.wait(20)
        return self._address

    def _started(self, address):
        self._address = address
        self._ready.set()

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._work.cancel)
        self._thread.join(20)
