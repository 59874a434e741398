"""The dictionary of bounded size."""

from server import BoundedDict


def test_the_oldest_entry_is_dropped_and_a_new_put_makes_an_entry_the_newest() -> None:
    kept: BoundedDict[str, int] = BoundedDict(2)
    kept.put("a", 1)
    kept.put("b", 2)
    kept.put("a", 3)
    kept.put("c", 4)
    assert list(kept.items()) == [("a", 3), ("c", 4)]


def test_reading_does_not_change_the_order() -> None:
    kept: BoundedDict[str, int] = BoundedDict(2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == kept["a"] == 1
    kept.put("c", 3)
    assert list(kept) == ["b", "c"]


def test_room_is_made_from_the_oldest_end_two_entries_at_a_time() -> None:
    ends: BoundedDict[str, int] = BoundedDict(10)
    for key, end in (("a", 1), ("b", 1), ("c", 1), ("d", 9), ("e", 1)):
        ends.put(key, end)
    ends.make_room(lambda end: end <= 5)
    assert list(ends) == ["c", "d", "e"]
    ends.make_room(lambda end: end <= 5)
    assert list(ends) == ["d", "e"], "what is not over stops the search"


def test_a_full_one_makes_room_for_one_whatever_is_over() -> None:
    kept: BoundedDict[int, int] = BoundedDict(3)
    for number in range(50):
        kept.make_room(lambda _: False)
        kept[number] = number
        assert len(kept) <= 3
    assert list(kept) == [47, 48, 49]
    empty: BoundedDict[int, int] = BoundedDict(3)
    empty.make_room(lambda _: True)
    assert not empty
