from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from devft_jax.files import printable
from devft_jax.reporting.svg import Picture, escape, exactly

# Lone surrogates and control characters too: names come from users' files.
ANYTHING = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)


@given(ANYTHING)
def test_any_text_is_well_formed_content_and_attribute(text):
    picture = ElementTree.fromstring(Picture(text, 20, 10, [f"<g>{escape(text)}</g>"]).document().encode())
    shown = picture.find("{*}g").text or ""
    assert shown == picture.get("aria-label")
    assert printable(shown) == shown
    assert len(shown) <= 6 * len(text)


def test_what_can_be_shown_is_kept():
    assert escape("ż & 文 <b> \"'") == "ż &amp; 文 &lt;b&gt; &quot;&#x27;"
    assert escape("a\x00b\n\tc\ud800\uffff") == "a\\x00b c\\ud800\ufffd"
    # What would turn the direction of the text, or stand in it unseen.
    assert escape("gpj.\u202eexe\u200b") == "gpj.\\u202eexe\\u200b"
    assert exactly("a\n\tb\x1b[31m") == "a\n\tb\\x1b[31m"
