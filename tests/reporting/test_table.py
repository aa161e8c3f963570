from devft_jax.reporting.table import table


def test_tables_align_numbers_to_the_right():
    assert table([("a", "b"), ("long", "12"), ("x", "3")]) == ["a      b", "long  12", "x      3"]
