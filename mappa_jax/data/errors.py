"""The one error of this package."""


class DataError(ValueError):
    """Data is missing, malformed or unusable; the message names place and remedy."""
