"""Walking through the views of a report in a browser."""

TRAINING = "#/e/step_000001:4"
COMPARED = "#/compare/eval_000000_sums:3/eval_000004_sums:3"
VIEWS = {
    "overview": "#/overview",
    "curves": "#/curves",
    "episodes": "#/episodes",
    "episode": TRAINING,
    "compare": COMPARED,
    "config": "#/config",
}


def fragment(tab):
    return tab.evaluate("location.hash")


def settle(tab):
    """Waits for what is in sight to be drawn."""
    for plot in tab.query_selector_all(".plot"):
        if plot.bounding_box()["y"] < 900:
            plot.wait_for_selector(".main-svg")


def each_view(tab):
    """Goes to every view in turn; gives its name."""
    for name, where in VIEWS.items():
        tab.evaluate(f"location.hash = {where!r}")
        tab.wait_for_selector(MARKS[name])
        if name == "overview":  # the others are longer than a look
            tab.locator(".plot").last.scroll_into_view_if_needed()
            tab.locator(".plot").last.locator(".main-svg").first.wait_for()
            tab.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
        settle(tab)
        yield name


MARKS = {
    "overview": ".verdict",
    "curves": "figure[data-panel=kl]",
    "episodes": "#list .row",
    "episode": ".flow > .action",
    "compare": ".pair .action",
    "config": "main h1:text('Config')",
}
