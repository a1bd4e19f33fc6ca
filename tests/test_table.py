from parallel_r1.table import Table


def test_markdown():
    table = Table(("name", "n"), [("a", "1"), ("b|c", "2")], "Numbers")
    assert table.markdown() == "## Numbers\n\n| name | n |\n| --- | --- |\n| a | 1 |\n| b\\|c | 2 |\n"
    assert Table(("name",), []).markdown() == "| name |\n| --- |\n"
