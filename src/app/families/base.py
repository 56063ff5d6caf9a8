"""What a base-model family is: the facts every stage needs, in one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """A chat template as plain strings, from which text, train-mask and Jinja are all made (``app.data.render``).

    Every ``{content}`` is replaced by the message's text, stripped of outer white space. What a model is trained
    to write is ``answer`` and nothing else: the text of the turn and the token that ends it.

    Attributes:
        bos: what a conversation begins with, or "" for models that use none.
        system: the system turn; None where the family has no such role: the text then goes before the first
            question, a blank line between.
        default_system: the system text the official template adds when a conversation has none.
        user: the question's turn.
        answer_open: opens the answer; the prompt ends with it and generation goes on from there.
        answer: the trained text, with the end-of-turn token.
        answer_close: what stands between an answer and the next turn.
        tokens: every special token written in the strings above; the tokenizer must have each as one id.
    """

    bos: str
    system: str | None
    default_system: str | None = None
    user: str
    answer_open: str
    answer: str
    answer_close: str = ""
    tokens: tuple[str, ...]

    def jinja(self) -> str:
        """The same format as a Jinja chat template (for tokenizers, GGUF files and servers)."""

        def quote(text: str) -> str:
            return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"

        def turn(form: str, content: str) -> str:
            before, after = form.split("{content}")
            return " + ".join(
                part for part in (quote(before) if before else "", content, quote(after) if after else "") if part
            )

        text = "(message['content'] | trim)"
        parts = ["{{ " + quote(self.bos) + " }}"] if self.bos else []
        if self.system is None:
            parts.append("{% set ns = namespace(system='') %}")
            system, user = "{% set ns.system = " + text + " + '\\n\\n' %}", "ns.system + " + text
        else:
            system, user = "{{ " + turn(self.system, text) + " }}", text
        if self.system is not None and self.default_system is not None:
            default = quote(self.system.format(content=self.default_system))
            parts.append("{% if messages[0]['role'] != 'system' %}{{ " + default + " }}{% endif %}")
        parts.append("{% for message in messages %}{% if message['role'] == 'system' %}")
        parts.append("{% if " + text + " %}" + system + "{% endif %}")
        parts.append("{% elif message['role'] == 'user' %}{{ " + turn(self.user, user) + " }}")
        if self.system is None:
            parts.append("{% set ns.system = '' %}")
        opening = "{{ " + quote(self.answer_open) + " }}" if self.answer_open else ""
        parts.append("{% else %}" + opening)
        parts.append("{% generation %}{{ " + turn(self.answer, text) + " }}{% endgeneration %}")
        if self.answer_close:
            parts.append("{{ " + quote(self.answer_close) + " }}")
        parts.append("{% endif %}{% endfor %}")
        if opening:
            parts.append("{% if add_generation_prompt %}" + opening + "{% endif %}")
        return "".join(parts)


@dataclass(frozen=True, kw_only=True)
class GgufFacts:
    """How llama.cpp names and stores this family (its ``convert_hf_to_gguf.py``, 2026-11).

    Attributes:
        architecture: ``general.architecture``.
        tokenizer_model: "llama" for SentencePiece vocabularies, "gpt2" for byte-level BPE.
        pre: ``tokenizer.ggml.pre``, the pre-tokenizer's name; None where llama.cpp needs none.
        permute_qk: rows of q and k are reordered for llama.cpp's rotary layout.
        norm_offset: added to every norm weight (Gemma stores weight - 1).
        add_bos: ``tokenizer.ggml.add_bos_token``.
        add_space_prefix: ``tokenizer.ggml.add_space_prefix``; None leaves llama.cpp's default.
        eot_token: the end-of-turn token where it is not the EOS token.
    """

    architecture: str
    tokenizer_model: Literal["llama", "gpt2"]
    pre: str | None = None
    permute_qk: bool
    norm_offset: float = 0.0
    add_bos: bool
    add_space_prefix: bool | None = None
    eot_token: str | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """All that is known about one base-model family.

    Attributes:
        name: what the YAML says (``family: mistral``).
        title: what people call it.
        base_models: hub ids it was written for; the first is the default of the family's config.
        licence: of the first base model's weights, as its hub page states it.
        parameters: of the first base model, as published; ``config`` must give the same number.
        model_types: values of ``config.json``'s ``model_type`` that belong to it.
        chat: the chat format; ``sources`` says where it was taken from.
        lora_targets: names of all linear layers of a decoder block, as the model class names them.
        stop_tokens: tokens that end an answer; the first is the end-of-turn token that is trained.
        pad_token: a token of the vocabulary used to fill batches; never attended to, never trained.
        gguf: llama.cpp's names for it.
        config: ``config.json`` of the first base model (shapes for `plan`, the benchmarks and the tests).
        sources: where each fact was taken from.
    """

    name: str
    title: str
    base_models: tuple[str, ...]
    licence: str
    parameters: int
    model_types: tuple[str, ...]
    chat: ChatFormat
    lora_targets: tuple[str, ...]
    stop_tokens: tuple[str, ...]
    pad_token: str
    gguf: GgufFacts
    config: Mapping[str, Any] = field(repr=False)
    sources: tuple[str, ...]
