"""Chat templates as programs of strangers: what they may use, how long they may take, and what they cannot reach."""

import time

import pytest

from devft_jax.data.chat import ChatTemplate, ChatTemplateError, chat_template

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]


@pytest.fixture
def rendered():
    """A function of a template: what it makes of two turns."""
    made = []

    def call(template, **names):
        made.append(ChatTemplate(template, names, seconds=0.5))
        return made[-1](TURNS, [(2, False)])[0]

    yield call
    for template in made:
        template.close()


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}", "hi</s>ok</s>"),
        (
            "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content|upper }}\n  {% continue %}"
            "{% endif %}x{% endfor %}",
            "HI\nx",
        ),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "ok"),
        ("{{ messages|tojson }}", '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]'),
        ("{{ {'a': '<é>'}|tojson(indent=1) }}", '{\n "a": "<é>"\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        (
            "{{ tools is none }} {{ documents is none }} {{ enable_thinking is defined }} {{ dict(a=1).a }}",
            "True True False 1",
        ),
        ("\n{% macro show(m) %}[{{ m.role }}]{% endmacro %}\n{{ show(messages[0]) }}", "\n[user]"),
        ("{{ '\\u2028é🙂' }}", "\u2028é🙂"),
    ],
)
def test_what_templates_are_promised(rendered, template, text):
    assert rendered(template, eos_token="</s>") == text


def test_renderings_are_those_of_transformers(rendered, word_tokenizer):
    tokenizer = word_tokenizer()
    for template in (
        "  {%- for m in messages -%}\n  {{- '<|' + m.role + '|>\n' -}}\n{{ m.content | trim }}\n{% endfor %}{{ bos_token }}",
        "{% if messages[0].role == 'system' %}a{% else %}{% set said = messages %}{% endif %}\n{{ said|length }}",
    ):
        expected = tokenizer.apply_chat_template(TURNS, chat_template=template, tokenize=False)
        assert rendered(template, **tokenizer.special_tokens_map) == expected


ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "loops over text": "{% set t = 'x' * 1000 %}" + "{% for a in t %}" * 8 + "{% endfor %}" * 8,
    "a power": "{{ 7 ** 99999999 }}",
    "doubled text": "{% set t = 'xxxxxxxx' %}" + "{% set t = t ~ t %}" * 60 + "{{ t|length }}",
    "a wide column": "{{ 'a'|center(10000000000) }}",
    "macros": "{% macro m0() %}x{% endmacro %}"
    + "".join(f"{{% macro m{n}() %}}{{{{ m{n - 1}() }}}}{{{{ m{n - 1}() }}}}{{% endmacro %}}" for n in range(1, 60))
    + "{{ m59() }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped_within_seconds(rendered, name):
    start = time.perf_counter()
    with pytest.raises(ChatTemplateError, match=r"it takes more than 0\.5 s or 1024 MiB for one conversation"):
        rendered(ENDLESS[name])
    assert time.perf_counter() - start < 30


def test_the_next_conversation_is_rendered_after_one_that_was_stopped():
    loops = "{% for n in range(99999 if messages|length > 1 else 0) %}{% for k in range(99999) %}{% endfor %}{% endfor %}ok"
    template = ChatTemplate(loops, {}, seconds=0.5)
    with pytest.raises(ChatTemplateError):
        template(TURNS, [(2, False)])
    assert template(TURNS, [(1, False)]) == ["ok"]
    template.close()


@pytest.mark.parametrize(
    "expression",
    [
        "cycler.__init__.__globals__.os.system('touch {place}')",
        "''.__class__.__mro__[1].__subclasses__()",
        "lipsum.__globals__['os'].system('touch {place}')",
        "namespace.__init__.__globals__",
        "strftime_now.__self__.__class__.__base__",
        "raise_exception.__globals__['json']",
        "dict.__globals__['json']",
        "messages.append(1)",
        "self.__init__.__globals__",
        "('{0.__class__.__init__.__globals__}'|attr('format'))(joiner)",
    ],
)
def test_a_template_reaches_nothing_outside(rendered, tmp_path, expression):
    with pytest.raises(ChatTemplateError):
        rendered("{{ " + expression.replace("{place}", str(tmp_path / "sprung")) + " }}")
    assert not list(tmp_path.iterdir())


def test_errors_are_the_templates_own_first_line(rendered):
    for template, message in (
        ("{{ raise_exception('no system text\\nand more') }}", "^no system text$"),
        ("{% for %}", "Expected an expression"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "no settable"),
    ):
        with pytest.raises(ChatTemplateError, match=message):
            rendered(template)


def test_one_process_serves_all_who_ask_for_a_template():
    first = chat_template("{{ a }}", {"a": "b", "c": ["d"]})
    assert first is chat_template("{{ a }}", {"c": ["d"], "a": "b"})
    assert first(TURNS, [(0, True), (1, False)]) == ["b", "b"]
