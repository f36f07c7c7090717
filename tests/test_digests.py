"""`DigestSet` says what a set says, merges and zero bytes included."""

from hypothesis import given
from hypothesis import strategies as st

from phf.corpus.digests import DigestSet


@given(st.lists(st.integers(0, 40), max_size=200))
def test_it_agrees_with_a_set(numbers):
    # Digests with zero bytes at both ends and few differences, and merges after every third.
    values = [bytes([0, number % 3, 0, number // 3]) + bytes(12) + b"ignored" for number in numbers]
    compact, plain = DigestSet(min_recent=3), set()
    for value in values:
        assert compact.add(value) == (value not in plain)
        plain.add(value)
