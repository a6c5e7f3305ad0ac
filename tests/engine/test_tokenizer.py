"""Tokens to bytes, for each kind of decoder; chat templates; what is special."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from vdiff_grpc.engine.prompt_types import ChatMessage
from vdiff_grpc.engine.text import TextStream
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.errors import CheckpointError

USER = ChatMessage("user", "hi")


def save(folder: Path, rust: RustTokenizer, **config: object) -> Tokenizer:
    rust.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(str(folder))
    assert tokenizer is not None
    return tokenizer


def byte_level() -> RustTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = RustTokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken("<|s|>", special=True), AddedToken("<|t|>", special=True)])
    return rust


def test_byte_level_tokens_are_their_bytes(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, byte_level())
    text = "Ünï €😀\n\x00~"
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()
    assert len(ids) == len(text.encode())


def test_sentencepiece_tokens_have_their_space_and_byte_fallbacks(tmp_path: Path) -> None:
    rust = RustTokenizer(models.BPE({"▁the": 0, "<0xE2>": 1, "re": 2}, [], byte_fallback=True))
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer = save(tmp_path, rust)
    assert [tokenizer.token_bytes(i) for i in range(3)] == [b" the", b"\xe2", b"re"]


def test_wordpiece_tokens_join_where_they_say(tmp_path: Path) -> None:
    rust = RustTokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    rust.decoder = decoders.WordPiece()
    tokenizer = save(tmp_path, rust)
    assert [tokenizer.token_bytes(i) for i in (1, 2)] == [b" play", b"ing"]


def test_special_tokens_have_no_text_but_a_name_to_show(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, byte_level())
    [special] = tokenizer.encode("<|s|>")
    assert tokenizer.token_bytes(special) == b""
    assert tokenizer.token_text(special) == "<|s|>"
    text = TextStream(0, tokenizer, (), frozenset(), (3,))
    for position, token in enumerate([*tokenizer.encode("a"), special, *tokenizer.encode("b")]):
        text.push(token, position, 0, 1.0)
    assert text.text == "ab"
    assert len(text.tokens.ids) == 3


def test_ids_beyond_the_vocabulary_are_undefined_and_empty(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, byte_level())
    assert tokenizer.token_bytes(5000) == b""
    assert 5000 not in tokenizer.defined_ids


def test_a_chat_template_comes_from_config_or_file(tmp_path: Path) -> None:
    template = "{{ eos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
    tokenizer = save(tmp_path, byte_level(), chat_template=template, eos_token="<|s|>")
    assert tokenizer.encode_chat([USER]) == tokenizer.encode("<|s|>user:hi")
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    tokenizer = save(tmp_path, byte_level(), chat_template=template)
    assert tokenizer.encode_chat([USER]) == tokenizer.encode("hi!")


def test_a_template_that_refuses_says_so(tmp_path: Path) -> None:
    template = "{{ raise_exception('no ' + messages[0].role) }}"
    tokenizer = save(tmp_path, byte_level(), chat_template=template)
    with pytest.raises(ValueError, match="no user"):
        tokenizer.encode_chat([USER])


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    tokenizer = save(tmp_path, byte_level(), chat_template=template)
    with pytest.raises(ValueError, match="refuses"):
        tokenizer.encode_chat([USER])


def test_without_a_tokenizer_there_is_none_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert Tokenizer.load(str(tmp_path)) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: is no tokenizer"):
        Tokenizer.load(str(tmp_path))


# --- templates of the published shapes --------------------------------------------

# LLaDA-Instruct, Llama 3: headers, a mark at each turn's end, and one before all.
HEADERS = """
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
        + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

# Dream, SDAR, Qwen: one pair of marks; a system message of their own where none is given.
MARKS = """
{%- if tools is defined and tools %}{{- raise_exception('no tools') }}{%- endif %}
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant'
        or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""

# Qwen 3 looks for what an answer thought, with a namespace, slices and string methods.
THINKING = """
{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == 'user' and message.content is string and not ns.found %}
        {%- set ns.last = index %}{% set ns.found = true %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{% endif %}
{%- endif %}
"""

NAMES = ("<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
NAMES += ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def with_names() -> RustTokenizer:
    rust = byte_level()
    rust.add_special_tokens([AddedToken(name, special=True) for name in NAMES])
    return rust


def rendered(tokenizer: Tokenizer, *messages: tuple[str, str]) -> str:
    """The conversation as text, special tokens by name."""
    ids = tokenizer.encode_chat([ChatMessage(role, content) for role, content in messages])
    parts = [tokenizer.token_text(i) for i in ids]
    return "".join(parts)


def test_a_template_with_headers(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, with_names(), chat_template=HEADERS, bos_token="<|startoftext|>")
    assert rendered(tokenizer, ("user", " hi ")) == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    turns = (("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert rendered(tokenizer, *turns).count("<|startoftext|>") == 1
    assert rendered(tokenizer, *turns).count("<|eot_id|>") == 4


def test_a_template_with_marks_and_a_system_message_of_its_own(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, with_names(), chat_template=MARKS)
    user = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(tokenizer, ("user", "hi")) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + user
    )
    assert rendered(tokenizer, ("system", "Be brief."), ("user", "hi")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n" + user
    )


def test_a_template_that_leaves_out_earlier_thoughts(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, with_names(), chat_template=THINKING)
    turns = (("user", "a"), ("assistant", "<think>so</think>\nb"), ("user", "c"))
    assert rendered(tokenizer, *turns) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_name_of_a_special_token_in_a_message_is_that_token(tmp_path: Path) -> None:
    """As in transformers; a server that must prevent it filters its callers' messages."""
    tokenizer = save(tmp_path, with_names(), chat_template=MARKS)
    text = rendered(tokenizer, ("user", "x<|im_end|>y"))
    assert text.count("<|im_end|>") == 3


def test_templates_of_several_names_have_a_default(tmp_path: Path) -> None:
    several = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ messages[0].content }}"},
    ]
    tokenizer = save(tmp_path, with_names(), chat_template=several)
    assert rendered(tokenizer, ("user", "hi")) == "hi"
