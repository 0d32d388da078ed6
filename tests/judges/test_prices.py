"""Prices: a dated table, ours or the user's."""

import json

import pytest

from mappa_jax.config import BudgetConfig, JudgeConfig
from mappa_jax.judges import JudgeError, Ledger, make_judge
from mappa_jax.judges.prices import Price, find_price
from mappa_jax.judges.provider import Usage


def test_a_call_by_hand():
    price = Price(prompt=2.0, cached=0.5, answer=10.0)
    usage = Usage(prompt=1000, cached=400, answer=30, thinking=70)
    assert price.of(usage) == pytest.approx((600 * 2 + 400 * 0.5 + 100 * 10) / 1e6)


def test_the_papers_judges_are_in_the_table():
    for model in ("gemini-2.5-flash", "gemini-2.5-pro"):
        assert find_price(model).answer > find_price(model).prompt > 0
    assert find_price("unheard-of") is None


def test_a_table_of_ones_own(tmp_path):
    table = tmp_path / "prices.json"
    row = {"prompt": 1.0, "cached": 1.0, "answer": 2.0}
    table.write_text(json.dumps({"as_of": "2026", "models": {"m": row}}))
    assert find_price("m", str(table)) == Price(**row)
    table.write_text('{"models": {"m": {"prompt": -1}}}')
    with pytest.raises(JudgeError, match="judge.prices.*prices.json"):
        find_price("m", str(table))


def test_a_budget_in_money_needs_a_price():
    config = JudgeConfig(
        provider="gemini", model="unheard-of", budget=BudgetConfig(usd=1.0)
    )
    keys = {"gemini": "K"}
    with pytest.raises(JudgeError, match="judge.budget.usd.*unheard-of.*judge.prices"):
        make_judge(config, roles=["solver"], keys=keys, ledger=Ledger(None))
