"""Texts that tokenizers disagree on: white space, emoji, scripts, half-written control tokens, digits, code."""

import random
from collections.abc import Sequence

SPACES = (
    " ",
    "  ",
    "   ",
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    " \n ",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
)
EMOJI = ("🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "🤷🏿‍♀️", "☃", "1️⃣", "😶‍🌫️")
SCRIPTS = (
    "漢字かな交じり文",
    "我想在apple工作1314151天",
    "한국어 텍스트",
    "ภาษาไทย",
    "مرحبا بالعالم",
    "שלום",
    "Привет, мир",
    "Ελληνικά",
    "हिन्दी",
    "কান্তै",
    "Größe straße",
    "naïve café",
    "é vs é",
    "ﬁ ﬂ ﷺ",
    "𝕄𝕒𝕥𝕙 𝟙𝟚𝟛",
    "z̷̢̛a̸l̴g̶o̷",
)
LOOKALIKES = (
    "<|im_start",
    "|im_end|>",
    "< |im_end|>",
    "<|im_end |>",
    "<|IM_END|>",
    "<|user",
    "<| user |>",
    "<|end",
    "<s",
    "< s>",
    "</ s>",
    "[INST",
    "[ INST ]",
    "[/INST",
    "<bos",
    "<start_of_turn",
    "<end_of_turn |>",
    "<unk ",
    "<0x0A",
    "<0x41 >",
    "▁",
    "▁▁a",
    "<|eot_id",
    "<|begin_of_text |>",
    "{{ content }}",
    "{% if %}",
    "[PAD0",
    "<pad",
    "Ġthe",
    "Ċ",
    "##ing",
    "@@",
)
NUMBERS = (
    "3",
    "33",
    "333",
    "3333",
    "33333",
    "3.14159",
    "1,000,000",
    "0x1F",
    "1e-10",
    "٣٤",
    "Ⅳ",
    "½",
    "10²",
    "-0",
    "3..3",
)
CODE = (
    "def f(x):\n    return x",
    "if (a<b&&c>d){\n\t\tfoo();\n}",
    '{"a": [1, 2.5e-3, null]}',
    "SELECT * FROM t WHERE x='y';",
    "https://example.org/a?b=c&d=%20#e",
    "C:\\Users\\x\\n",
    "<html><br/></html>",
    "$\\frac{1}{2}$",
    "a->b",
    "x = y  # z",
)
WORDS = (
    "the",
    "The",
    " the",
    "THE",
    "I've",
    "'told",
    "he's",
    "WE'LL",
    "don't",
    "antidisestablishmentarianism",
    "a",
    "ing",
    "camelCaseWord",
    "snake_case_word",
    "co-op",
    "…",
    "“quoted”",
    "—",
    "======",
    "``````",
    '""""',
    "!!!???",
    "..",
    "~~",
    "\\",
    "/",
)
POOLS = (SPACES, EMOJI, SCRIPTS, LOOKALIKES, NUMBERS, CODE, WORDS)


def nasty_strings(count: int = 500, *, seed: int = 42) -> Sequence[str]:
    """``count`` different texts: each piece alone, then random sequences of pieces.

    They hold look-alikes of control tokens but none whole: a whole one in a message is refused before it gets here.
    """
    texts = dict.fromkeys(piece for pool in POOLS for piece in pool)
    chooser = random.Random(seed)
    while len(texts) < count:
        chosen = [chooser.choice(chooser.choice(POOLS)) for _ in range(chooser.randint(2, 8))]
        texts["".join(chosen)] = None
    return list(texts)[:count]
