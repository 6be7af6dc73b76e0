"""A chat template is a foreign program: what it says is what transformers says, and it is stopped within its limits."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from chat_templates import CHATML, QWEN3, TEMPLATES, byte_tokenizer

from exoalign.data import template as template_module
from exoalign.data.template import ChatTemplate, chat_template, frame, render
from exoalign.data.tokenize import prompt_ids, tokenize
from exoalign.errors import ModelError
from exoalign.groups import Group, Message

USER = (Message("user", "Hi"),)
CONVERSATION = (
    Message("user", " \n Who are you?\n"),
    Message("assistant", "\n\nI am {{ a }} model. \t"),
    Message("user", "你好 \u2003"),
)


def peer_ids(tokenizer, turns, **settings):
    """What transformers makes of the turns."""
    return tokenizer.apply_chat_template(
        [turn._asdict() for turn in turns], tokenize=True, return_dict=False, **settings
    )


@pytest.mark.parametrize("name", [*TEMPLATES, "qwen3"])
def test_a_prompt_is_what_transformers_makes_of_it(name):
    tokenizer = byte_tokenizer((TEMPLATES | {"qwen3": QWEN3})[name])
    for turns in (USER, CONVERSATION, CONVERSATION[:1]):
        assert prompt_ids(tokenizer, turns) == peer_ids(tokenizer, turns, add_generation_prompt=True)


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr", "dated"])
def test_a_system_turn_too(name):
    tokenizer = byte_tokenizer(TEMPLATES[name])
    turns = (Message("system", " Be kind. "), *CONVERSATION)
    assert prompt_ids(tokenizer, turns) == peer_ids(tokenizer, turns, add_generation_prompt=True)


def test_a_template_says_why_it_refuses():
    tokenizer = byte_tokenizer(TEMPLATES["gemma"])
    with pytest.raises(ModelError, match=r"refuses the roles \['system', 'user'\]: System role not supported"):
        prompt_ids(tokenizer, (Message("system", "Be kind."), *USER))
    with pytest.raises(ModelError, match="Conversation roles must alternate"):
        prompt_ids(tokenizer, (*USER, *USER))


def test_of_several_templates_the_default_one_is_used():
    tokenizer = byte_tokenizer({"default": CHATML, "tool_use": "x"})
    assert prompt_ids(tokenizer, USER) == peer_ids(tokenizer, USER, add_generation_prompt=True)
    tokenizer.chat_template = {"tool_use": "x"}
    with pytest.raises(ModelError, match="several chat templates and none called default"):
        prompt_ids(tokenizer, USER)


NEVER_ENDING = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
STOPPED = {
    "a loop": (NEVER_ENDING, "ran for more than 2 s"),
    "a product": ("{{ 'a' * 10 ** 10 }}", "took more than 512 MB"),
    "doubling": (
        "{% set ns = namespace(s='aaaa') %}{% for i in range(90) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "took more than 512 MB|ran for more than 2 s",
    ),
    "a long text": ("{{ 'a' * 10 ** 7 }}", "made a text of more than 1,048,576 characters"),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_template_is_stopped_at_its_limits(name):
    source, message = STOPPED[name]
    tokenizer = byte_tokenizer(source)
    began = time.monotonic()
    with pytest.raises(ModelError, match=rf"^f\.jsonl:3: the chat template was stopped: it ({message})") as error:
        tokenize([Group(USER, ("a", "b"), winner=0, provenance={"source": "f.jsonl:3"})], tokenizer)
    assert "broken or hostile" in str(error.value)
    assert time.monotonic() - began < 10  # 2 s and a start of the child; the machine may be busy
    assert prompt_ids(byte_tokenizer(CHATML), USER)  # the next one has a new child


def test_the_limit_of_time_holds_without_the_limit_of_memory(monkeypatch):
    monkeypatch.setattr(template_module, "_BOOT", "import sys; sys.modules['resource'] = None;" + template_module._BOOT)
    monkeypatch.setattr(template_module, "_child", None)
    monkeypatch.setattr(template_module, "SECONDS", 0.5)
    with pytest.raises(ModelError, match="it ran for more than"):
        render(ChatTemplate(NEVER_ENDING, "{}"), (("user", "no resource"),), True)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['os'].system('true') }}",
        "{{ strftime_now.__code__.co_consts }}",
        "{{ self.__init__ }}{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}{{ (''|attr('__class__')).x.y }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
    ],
)
def test_an_escape_is_refused(source):
    with pytest.raises(ModelError, match="refuses the roles"):
        render(ChatTemplate(source, "{}"), (("user", "x"),), True)


def test_a_message_of_a_template_is_inert():
    with pytest.raises(ModelError) as error:
        render(ChatTemplate("{{ raise_exception('\x1b[2J') }}", "{}"), (("user", "x"),), True)
    assert "\x1b" not in str(error.value)
    assert "\\x1b[2J" in str(error.value)


def test_a_structure_is_rendered_once(monkeypatch):
    calls = []
    ask = template_module._child_answer
    monkeypatch.setattr(template_module, "_child_answer", lambda request: calls.append(1) or ask(request))
    tokenizer = byte_tokenizer(CHATML + "{# once #}")
    groups = [Group((Message("user", f"{i}"),), ("a", "b"), winner=0) for i in range(100)]
    tokenize(groups, tokenizer)
    assert len(calls) == 4  # the prompt and the whole, each with bare and with padded place-holders


def test_lone_surrogates_and_strange_roles_do_not_break_the_pipe():
    source = ChatTemplate("{{ messages[0].content }}", "{}")
    assert render(source, (("user", "\ud800\n\x00\u2028"),), False) == "\ud800\n\x00\u2028"


def test_a_child_that_died_is_replaced():
    frame(ChatTemplate(CHATML, "{}"), ("user",), True)
    template_module._child.process.kill()
    template_module._child.process.wait()
    with pytest.raises(ModelError, match="its process died"):
        render(ChatTemplate(CHATML, '{"a": "died"}'), (("user", "x"),), True)
    assert render(ChatTemplate(CHATML, '{"a": "died"}'), (("user", "x"),), True)


def test_an_interrupt_is_left_to_the_parent():
    frame(ChatTemplate(CHATML, "{}"), ("user",), True)
    os.kill(template_module._child.process.pid, signal.SIGINT)
    assert render(ChatTemplate(CHATML, '{"a": "interrupted"}'), (("user", "x"),), True)


def test_the_child_ends_with_its_parent():
    code = (
        "from exoalign.data import template as t;"
        "t.render(t.ChatTemplate('x', '{}'), (('user', 'x'),), True); print(t._child.process.pid, flush=True);"
        "import os; os._exit(0)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pid = int(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120).stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":  # ended; nobody has asked for its exit code
                return
        time.sleep(0.1)
    pytest.fail("the child outlives its parent")


def test_the_special_tokens_reach_the_template():
    tokenizer = byte_tokenizer("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    special = json.loads(chat_template(tokenizer).special)
    assert (special["bos_token"], special["eos_token"]) == ("<s>", "</s>")
