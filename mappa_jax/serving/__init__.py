"""A team behind an OpenAI-compatible HTTP endpoint.

errors     what a client is told when it cannot have what it asked for
protocol   bodies of requests, checked
replies    bodies of answers
partial    the text of an answer while it is being written
limits     how much is served at a time
episodes   a request -> the team, or one agent, at work
streaming  events as they happen
app        the routes
"""
