"""Which hosts are this machine."""

import pytest

from mappa_jax.loopback import asks_loopback, is_loopback


@pytest.mark.parametrize(
    "header",
    [
        *("localhost:1", "localhost", "127.0.0.1", "127.0.0.1:80", "127.9.9.9:8000"),
        *("[::1]", "[::1]:80"),
    ],
)
def test_a_host_header_of_this_machine(header):
    assert asks_loopback(header)


@pytest.mark.parametrize(
    "header",
    [
        *("evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1:80"),
        *("", "[", "[::1", "]", "[x]", ":", "a@127.0.0.1", "127.0.0.1/x", "0.0.0.0"),
    ],
)
def test_a_host_header_of_another_or_of_none(header):
    assert not asks_loopback(header)


def test_an_address_to_listen_on():
    assert is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("")
