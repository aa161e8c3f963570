from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from devft_jax.files import printable
from devft_jax.reporting.svg import Picture, beside, escape, exactly

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


def test_pictures_beside_each_other_do_not_overlap_and_keep_their_styles():
    pictures = [
        Picture("one", 100, 50, ["<g/>"], style=".a {}"),
        Picture("two & more", 60, 80, ["<path/>"], left=5, style=".b {}"),
        Picture("three", 10, 10, [], style=".a {}"),
    ]
    whole = beside("all", pictures, gap=7)
    drawn = ElementTree.fromstring(whole.document())
    inner = drawn.findall("{*}svg")
    assert [(int(each.get("x")), int(each.get("width"))) for each in inner] == [(0, 100), (107, 60), (174, 10)]
    assert drawn.get("viewBox") == f"0 0 184 {int(inner[0].get('y')) + 80}"
    assert [each.find("{*}text").text for each in inner] == ["one", "two & more", "three"]
    assert [len(each) for each in inner] == [2, 2, 1]
    assert whole.style == ".a {}.b {}"


def test_a_picture_shows_itself_in_a_notebook_and_its_repr_is_short():
    picture = Picture("one", 100, 50, ["<g/>"] * 1000)
    assert picture._repr_svg_() == picture.document()
    assert len(repr(picture)) < 100
