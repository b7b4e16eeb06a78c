"""docs/convert.md lists the registered families."""

from hybridlm.convert import document


def test_the_page_has_the_table_of_today():
    text = document.PAGE.read_text()
    assert document.page(text) == text, "run python -m hybridlm.convert.document"
