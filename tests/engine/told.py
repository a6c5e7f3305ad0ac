"""Checkpoints whose chat template has tools, in the form of Hermes and Qwen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.engine.spelled import spelled_checkpoint

DEMO = Path(__file__).parents[2] / "vdiff_grpc" / "assets" / "demo"

# The embedded model's special tokens; short, for its canvas is.
TEMPLATE = """\
{{- bos_token -}}
{%- if tools -%}
{{ '<|user|>' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{ '<|assistant|>' + m.content }}
{%- for call in m.tool_calls or [] -%}
{{ '\\n' if m.content or not loop.first }}<tool_call>
{{ '{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
{{ '<|eot|>' }}
{%- elif m.role == 'tool' -%}
{{ '<|user|><tool_response>' + m.content + '</tool_response>' }}
{%- else -%}
{{ '<|user|>' + m.content }}
{%- endif -%}
{%- endfor -%}
{{ '<|assistant|>' if add_generation_prompt }}"""
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def told_demo(folder: Path) -> Path:
    """The embedded model, told of tools."""
    for file in DEMO.iterdir():
        if file.is_file():
            shutil.copy(file, folder / file.name)
    _set_template(folder, TEMPLATE)
    return folder


def told_checkpoint(folder: Path, template: str = TEMPLATE) -> Path:
    """The tiny random checkpoint that can spell calls, with tags that are special tokens, too."""
    spelled_checkpoint(folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    for number, piece in enumerate(("<", ">", "<tool_call>", "</tool_call>"), 90):
        words = tokenizer["model"]["vocab"]
        words.pop(f"<{number}>")
        words[piece] = number
        if len(piece) > 1:
            added = tokenizer["added_tokens"]
            added.append(added[0] | {"id": number, "content": piece})
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    _set_template(folder, template)
    return folder


def _set_template(folder: Path, template: str) -> None:
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(config | {"chat_template": template}), encoding="utf-8")
