"""Owns the training mixture: stories, chat about stories, definitions and the two tasks."""

from __future__ import annotations

import json
import pickle
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training.tasks import TOP, draw_digits, draw_row, row_ask, row_reply, task_text
from training.tokenizer import ASSISTANT_ID, BOS_ID, EOS_ID, EOT_ID, USER_ID

SEPARATOR = "<|endoftext|>"
HELD_OUT_REAL, HELD_OUT_SAMPLED = 100, 300
NOUN_TEXT = """
dog cat bird fish frog rabbit bunny bear mouse duck pig cow horse lion tiger monkey elephant fox
owl bee ant spider turtle snake butterfly squirrel sheep goat chicken puppy kitten wolf dragon
fairy witch king queen prince princess knight pirate robot monster ghost wizard ball doll car truck
train plane boat ship bike kite balloon toy block puzzle book box bag hat coat shoe dress sock
scarf ring necklace crown key lock door window lamp candle clock bell drum guitar piano song
picture painting pencil crayon letter map flag rope stick rock stone leaf flower tree bush garden
grass river lake pond sea beach island mountain hill cave forest farm park zoo school house castle
tower bridge road street shop store kitchen room bed table chair mirror blanket pillow cake cookie
pie apple banana orange pear carrot potato soup sandwich pizza candy bread cheese egg milk juice
cup bowl plate spoon sun moon star cloud rainbow storm snow snowman wind boy girl farmer teacher
doctor baby friend brother sister grandma grandpa nest tent hammer bucket ladder swing slide well
jar button vase airplane helicopter rocket bus wagon sled camera basket treasure coin gift present
party race game
"""
STOP_TEXT = """
the and was for that with had said her his she him they them you but not all one day very big are
were who have has can did get got let now out then there when what why how from into some its too
yes will would could your our this off does went made more saw may any own
"""
NOUNS = frozenset(NOUN_TEXT.split())
STOP = frozenset(STOP_TEXT.split())
STORY_ASKS = (
    "Tell me a story about {x}.",
    "Write a short story about {x}.",
    "Can you tell me a story about {x}?",
    "I want to hear a story about {x}.",
    "Please tell me a story with {x}.",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly storyteller.",
    "Be brief and kind.",
    "Answer in simple words.",
)


@dataclass
class Stories:
    """Stories, split into training and held-out parts."""

    train: list[str]
    real_train: list[str]
    held_real: list[str]
    held_sampled: list[str]


@dataclass
class Definition:
    """One question-and-answer pair made from a dictionary entry."""

    word: str
    asks: list[str]
    reply: str


@dataclass
class Row:
    """Token ids of one text and where its answer begins (1: everything may be masked)."""

    ids: list[int]
    start: int
    kind: str


def read_stories(folder: Path) -> Stories:
    """Read both story files; the last of each are held out."""
    parts: list[list[str]] = []
    for name in ("stories-sampled.txt", "tinystories-real.txt"):
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        parts.append([s.strip() for s in text.split(SEPARATOR) if len(s.strip()) > 200])
    sampled, real = parts
    real = real[:-1]  # the file is cut at a size; its last story may not be whole
    return Stories(
        train=sampled[:-HELD_OUT_SAMPLED],
        real_train=real[:-HELD_OUT_REAL],
        held_real=real[-HELD_OUT_REAL:],
        held_sampled=sampled[-HELD_OUT_SAMPLED:],
    )


def with_article(word: str) -> str:
    """The word behind its indefinite article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def read_definitions(folder: Path, stories: Stories, limit: int = 1200) -> list[Definition]:
    """Short definitions of the words that are common in the stories, one per word."""
    counts: Counter[str] = Counter()
    for story in stories.train[::4] + stories.real_train:
        counts.update(re.findall(r"[a-z]{3,}", story))
    best: dict[tuple[str, str], str] = {}
    with (folder / "wordnet-definitions.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            word, pos = entry["word"], entry["pos"]
            if counts[word] < 8 or word in STOP or pos not in "nv" or (word, pos) in best:
                continue
            text = re.sub(r"\([^)]*\)", "", entry["definition"]).split(";")[0]
            text = re.sub(r"\s+", " ", text).replace(" ,", ",").strip(" ,:")
            if not 12 <= len(text) <= 80 or not re.fullmatch(r"[a-z][a-z ,'-]+", text):
                continue
            if pos == "n" and not re.match(r"(a|an|the|any|one|someone|something) ", text):
                continue
            best[word, pos] = text
    made: list[Definition] = []
    for (word, pos), text in best.items():
        if pos == "v" and (word, "n") in best:
            continue
        asks = [f"What does {word} mean?", f"Define {word}."]
        if pos == "n":
            asks = [f"What is {with_article(word)}?"] * 3 + asks
            reply = f"{with_article(word).capitalize()} is {text}."
        else:
            asks = [f"What does it mean to {word}?"] * 3 + asks
            reply = f"To {word} is to {text.removeprefix('to ')}."
        made.append(Definition(word, asks, reply))
    made.sort(key=lambda d: -counts[d.word])
    return made[:limit]


@dataclass
class StoryTokens:
    """One tokenised story: ids without specials, sentence ends, nouns near its beginning."""

    ids: list[int]
    ends: list[int]
    nouns: list[str] = field(default_factory=list)


def tokenise(stories: Stories, tok: Tokenizer) -> list[StoryTokens]:
    """All training stories as tokens; the real ones twice."""
    texts = stories.train + stories.real_train * 2
    names = [tok.id_to_token(i) or "" for i in range(tok.get_vocab_size())]
    stops = {i for i, n in enumerate(names) if n[-1:] in '.!?"' and i > 5}
    opens = {i for i, n in enumerate(names) if n == "Ċ" or re.match(r'Ġ["A-Z]', n)}
    out: list[StoryTokens] = []
    encoded = tok.encode_batch(texts, add_special_tokens=False)
    for text, enc in zip(texts, encoded, strict=True):
        ids = enc.ids
        ends = [i + 1 for i in range(len(ids) - 1) if ids[i] in stops and ids[i + 1] in opens]
        words = re.findall(r"[a-z]+", text[:260])
        out.append(StoryTokens(ids, ends, sorted({w for w in words if w in NOUNS})))
    return out


def simplest(stories: list[StoryTokens], keep: float) -> list[StoryTokens]:
    """The share of the stories whose tokens are the most common ones on the whole."""
    flat = np.concatenate([np.array(s.ids) for s in stories])
    counts = np.bincount(flat).astype(np.float64)
    surprise = np.log(counts.sum() / np.maximum(counts, 1))
    means = np.array([surprise[s.ids].mean() for s in stories])
    limit = np.quantile(means, keep)
    return [s for s, m in zip(stories, means, strict=True) if m <= limit]


class Mixture:
    """Draws rows of every kind from the tokenised texts."""

    def __init__(
        self, folder: Path, tok: Tokenizer, seed: int, cache: Path | None = None, keep: float = 1.0
    ) -> None:
        self.rng = random.Random(seed)
        self.tok = tok
        stories = read_stories(folder)
        self.definitions = read_definitions(folder, stories)
        if cache is not None and cache.exists():
            self.stories: list[StoryTokens] = pickle.loads(cache.read_bytes())
        else:
            self.stories = tokenise(stories, tok)
            if cache is not None:
                cache.write_bytes(pickle.dumps(self.stories))
        self.stories = simplest(self.stories, keep)
        self.askable = [s for s in self.stories if s.nouns]
        self.short = [s for s in self.askable if len(s.ids) <= 116]
        self.tokens = sum(len(s.ids) for s in self.stories)

    def encode(self, text: str) -> list[int]:
        """Ids of a text without specials."""
        ids: list[int] = self.tok.encode(text, add_special_tokens=False).ids
        return ids

    def chat(self, ask: str, reply: list[int], kind: str) -> Row:
        """A row in chat form; one in sixteen has a system message before the request."""
        if self.rng.random() < 1 / 16:
            ask = self.rng.choice(SYSTEMS) + " " + ask
        prompt = [BOS_ID, USER_ID, *self.encode(ask), ASSISTANT_ID]
        return Row(prompt + reply + [EOT_ID], len(prompt), kind)

    def story(self) -> Row:
        """A plain story, mostly from its beginning, else from the start of a sentence."""
        s = self.rng.choice(self.stories)
        begin = 0
        if s.ends and self.rng.random() < 0.25:
            begin = self.rng.choice(s.ends)
            if s.ids[begin] < 300 and self.tok.id_to_token(s.ids[begin]) == "Ċ":
                begin += 1
        return Row([BOS_ID, *s.ids[begin:], EOS_ID], 1, "story")

    def chat_story(self, room: int) -> Row:
        """A request for a story and a reply that ends at a sentence within the room."""
        rng = self.rng
        s = rng.choice(self.short if rng.random() < 0.15 else self.askable)
        nouns = rng.sample(s.nouns, min(len(s.nouns), rng.choice((1, 2, 2))))
        ask = rng.choice(STORY_ASKS).format(x=" and ".join(map(with_article, nouns)))
        reply = s.ids
        most = min(114, room - 24)
        if len(reply) > most:
            target = rng.randint(most // 2 + 12, most)
            cuts = [e for e in s.ends if e <= target] or [target]
            lines = [e for e in cuts if self.tok.id_to_token(s.ids[e]) == "Ċ" and e > 40]
            reply = reply[: lines[-1] if lines and rng.random() < 0.7 else cuts[-1]]
        return self.chat(ask, reply, "chat")

    def definition(self) -> Row:
        """A question about a word and its one-sentence answer."""
        d = self.rng.choice(self.definitions)
        return self.chat(self.rng.choice(d.asks), self.encode(d.reply), "definition")

    def task(self) -> Row:
        """A running-totals instance outside the held-out rule.

        A sum says little to who sees one of its terms only, which makes a plateau; instances of
        still smaller digits lead the way into it.
        """
        top = self.rng.choice((0, 1, 1, TOP, TOP, TOP, TOP, TOP, TOP, TOP))
        ask, reply = task_text(draw_digits(self.rng, False, top))
        return self.chat(ask, self.encode(reply), "task")

    def filling(self) -> Row:
        """An each-digit-once instance outside the held-out rule, of two to ten holes."""
        row = draw_row(self.rng, False, self.rng.randint(2, 10))
        return self.chat(row_ask(row), self.encode(row_reply(row, self.rng)), "filling")

    def row(self, shares: Sequence[float], length: int) -> Row:
        """One row by shares of (story, chat story, definition, running totals, each digit once)."""
        kind = self.rng.choices(range(len(shares)), weights=shares)[0]
        if kind == 0:
            return self.story()
        if kind == 1:
            return self.chat_story(length)
        return (self.definition, self.task, self.filling)[kind - 2]()


@dataclass
class Batch:
    """A rectangle of rows: ids, first maskable position, text length, whether order is free.

    Free: the reply may be found in any order, so rows are never masked from left to right.
    """

    ids: np.ndarray
    start: np.ndarray
    length: np.ndarray
    free: np.ndarray


def make_batch(mix: Mixture, rows: int, length: int, shares: Sequence[float]) -> Batch:
    """Rows of one canvas length: longer texts are cropped, shorter filled with EOS."""
    ids = np.full((rows, length), EOS_ID, dtype=np.int64)
    start = np.ones(rows, dtype=np.int64)
    size = np.zeros(rows, dtype=np.int64)
    free = np.zeros(rows, dtype=bool)
    for r in range(rows):
        row = mix.row(shares, length)
        n = min(length, len(row.ids))
        ids[r, :n] = row.ids[:n]
        start[r], size[r] = min(row.start, length - 1), n
        free[r] = row.kind == "filling"
    return Batch(ids, start, size, free)
