"""A few ControlNets stay in memory; the one that was used longest ago goes first, before another comes."""

from __future__ import annotations

import pytest

from core.errors import WeightsMissing
from core.models.controlnet import ControlNet
from core.runtime.control_cache import ControlCache
from tests.tiny_model import tiny_config, tiny_control

CONFIG = tiny_config()


class Loads:
    def __init__(self, budget: int) -> None:
        self.names: list[str] = []
        self.held_while_loading: list[int] = []
        self.cache = ControlCache(self.load, budget)

    def load(self, name: str) -> ControlNet:
        self.held_while_loading.append(sum(other in self.cache for other in "abcd"))
        if name == "missing":
            raise WeightsMissing("not here. Get it.")
        self.names.append(name)
        return tiny_control(CONFIG, name)


def test_the_one_used_longest_ago_goes_first() -> None:
    loads = Loads(2)
    for name in ("a", "b", "a", "c", "a", "b"):
        loads.cache.get([name])
    assert loads.names == ["a", "b", "c", "b"]
    assert ["a" in loads.cache, "b" in loads.cache, "c" in loads.cache] == [True, True, False]


def test_room_is_made_before_loading() -> None:
    loads = Loads(2)
    for name in ("a", "b", "c", "d"):
        loads.cache.get([name])
    assert loads.held_while_loading == [0, 1, 1, 1]


def test_a_request_gets_all_it_needs_even_beyond_the_budget_and_the_next_shrinks_again() -> None:
    loads = Loads(1)
    assert list(loads.cache.get(["a", "b", "c", "a"])) == ["a", "b", "c"]
    assert loads.names == ["a", "b", "c"]
    loads.cache.get(["b"])
    assert ["a" in loads.cache, "b" in loads.cache, "c" in loads.cache] == [False, True, False]


def test_what_a_request_needs_is_not_dropped_for_its_other_needs() -> None:
    loads = Loads(2)
    loads.cache.get(["a"])
    loads.cache.get(["b"])
    loads.cache.get(["c", "a"])
    assert loads.names == ["a", "b", "c"]


def test_a_failed_load_leaves_the_others() -> None:
    loads = Loads(2)
    loads.cache.get(["a"])
    with pytest.raises(WeightsMissing):
        loads.cache.get(["missing"])
    assert "a" in loads.cache and "missing" not in loads.cache


def test_no_names_load_nothing_and_drop_nothing() -> None:
    loads = Loads(1)
    loads.cache.get(["a"])
    assert loads.cache.get([]) == {}
    assert "a" in loads.cache


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_controls is 0: give at least 1"):
        ControlCache(lambda name: tiny_control(CONFIG, name), 0)
