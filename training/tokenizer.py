"""Owns the vocabulary: trains the byte-level BPE of 4,096 and writes the tokenizer files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
EOS, BOS, MASK, EOT, USER, ASSISTANT = (
    "<|endoftext|>",
    "<|bos|>",
    "<|mask|>",
    "<|eot|>",
    "<|user|>",
    "<|assistant|>",
)
SPECIALS = [EOS, BOS, MASK, EOT, USER, ASSISTANT]
EOS_ID, BOS_ID, MASK_ID, EOT_ID, USER_ID, ASSISTANT_ID = range(6)

# A system message has no token of its own: it is put in front of the next user's words, and is a
# turn of the user's where none follow.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- set ns = namespace(system='') -%}"
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'system' -%}"
    "{%- set ns.system = ns.system + (m['content'] | trim) + ' ' -%}"
    "{%- elif m['role'] == 'assistant' -%}"
    "{{ '<|assistant|>' + (m['content'] | trim) + '<|eot|>' }}"
    "{%- else -%}"
    "{{ '<|user|>' + ns.system + (m['content'] | trim) }}"
    "{%- set ns.system = '' -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if ns.system -%}{{ '<|user|>' + (ns.system | trim) }}{%- endif -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train the BPE; digits always stand alone, every encoded text begins with BOS."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    for name, number in zip(SPECIALS, range(6), strict=True):
        if tok.token_to_id(name) != number:
            raise ValueError(f"{name} is not token {number}")
    return tok


def tokenizer_config() -> dict[str, object]:
    """The contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def save_tokenizer(tok: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    text = json.dumps(tokenizer_config(), indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Train on the texts in a folder and save."""
    from training.data import read_definitions, read_stories

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    stories = read_stories(args.texts)
    words = [d.reply for d in read_definitions(args.texts, stories)]
    tok = train_tokenizer(stories.train[::3] + stories.real_train + words)
    save_tokenizer(tok, args.out)
    sample = " ".join(stories.train[:200])
    print("vocabulary", tok.get_vocab_size(), "bytes/token", len(sample) / len(tok.encode(sample)))
    print(tok.encode("Running totals of 37295812.").tokens)


if __name__ == "__main__":
    main()
