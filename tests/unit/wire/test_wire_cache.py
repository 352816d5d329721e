"""The cache keeps what is used and stays within its bound."""

from scheduler.wire.cache import BoundedCache


def test_the_least_recently_used_goes_first() -> None:
    cache: BoundedCache[str, int] = BoundedCache(3)
    for index, key in enumerate("abc"):
        cache.put(key, index, 1)
    assert cache.get("a") == 0
    cache.put("d", 3, 1)
    assert [cache.get(key) for key in "abcd"] == [0, None, 2, 3]
    assert (len(cache), cache.weight) == (3, 3)


def test_weights_are_counted() -> None:
    cache: BoundedCache[str, int] = BoundedCache(10)
    cache.put("a", 1, 6)
    cache.put("a", 2, 4)
    assert (cache.get("a"), cache.weight) == (2, 4)
    cache.put("b", 3, 7)
    assert (cache.get("a"), cache.get("b"), cache.weight) == (None, 3, 7)
    cache.put("c", 4, 11)
    assert (cache.get("c"), cache.get("b"), cache.weight) == (None, 3, 7)
