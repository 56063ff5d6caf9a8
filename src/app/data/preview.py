"""Samples as the model sees them, with what is trained in colour."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from app.data.records import Conversation
from app.data.render import render
from app.data.tokenize import encode
from app.families import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRAINED = ("bold green", "bold green underline")
"""Alternating, so that the borders of tokens show."""
GIVEN = ("dim", "dim underline")


def preview(samples: Sequence[Conversation], family: Family, tokenizer: "PreTrainedTokenizerFast | None") -> Text:
    """Rendered samples: trained tokens green, the others dim; whole spans where there is no tokenizer."""
    text = Text()
    for sample in samples:
        rendered = render(sample.messages, family.chat, answer_next=False)
        if tokenizer is None:
            text.append(f"── {sample.id} (as {family.title} sees it; trained text is green)\n", style="cyan")
            at = 0
            for start, end in rendered.trained:
                text.append(rendered.text[at:start], style=GIVEN[0])
                text.append(rendered.text[start:end], style=TRAINED[0])
                at = end
            text.append(rendered.text[at:], style=GIVEN[0])
        else:
            encoding = encode(sample.messages, tokenizer, family, answer_next=False)
            count = sum(encoding.trained)
            text.append(f"── {sample.id}: {len(encoding.input_ids)} tokens, {count} trained (green)\n", style="cyan")
            offsets = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            at = 0
            for number, ((_, end), trained) in enumerate(zip(offsets, encoding.trained, strict=True)):
                # Tokens of one multi-byte character share its span: the text is written once.
                text.append(rendered.text[at:end], style=(TRAINED if trained else GIVEN)[number % 2])
                at = max(at, end)
        text.append("\n")
    return text
