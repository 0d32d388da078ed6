"""A run's report: one HTML page that needs no network.

The way of the data: `workdir` reads what a run has left; `episodes` turns each
trajectory into what the viewer shows, `index` into a row of its list; `verdict` says if
the team got better, `curves` what is drawn, `overview` the rest; `build` puts them
together as named blocks of JSON; `page` writes those into the HTML of `assets/`, or
`live` serves them while the run goes on. Agent text is data throughout: the page puts
it on the screen as text.
"""
