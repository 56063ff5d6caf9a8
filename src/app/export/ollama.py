"""A Modelfile: the GGUF file with the template, stop tokens and defaults that Ollama needs.

The template is Go's ``text/template`` over Ollama's ``.Messages`` (roles and contents) and made, like the Jinja
template, from the family's ChatFormat. Ollama's engine adds the BOS token itself where the GGUF file says so
(``add_bos_token``); a default system text goes into SYSTEM, which Ollama uses when a conversation has none.

Two things Ollama does not do, and the renderer does: strip the white space around a message, and refuse control tokens
within one.
"""

from app.card import provenance
from app.export.tuned import TunedModel
from app.families import ChatFormat


def go_template(chat: ChatFormat, *, engine_adds_bos: bool) -> str:
    """The chat format as a Go template.

    Args:
        chat: the family's format.
        engine_adds_bos: whether the engine puts the BOS token in front.
    """
    parts = [] if engine_adds_bos or not chat.bos else [_text(chat.bos)]
    if chat.system is None:
        parts.append("{{ $first := true }}")
    parts.append("{{ range $index, $message := .Messages }}")
    if chat.system is not None:
        parts.append('{{ if eq .Role "system" }}' + _turn(chat.system))
        parts.append('{{ else if eq .Role "user" }}' + _turn(chat.user))
    else:
        before, after = (_text(part) for part in chat.user.split("{content}"))
        first = "{{ if and $first $.System }}{{ $.System }}" + _text("\n\n") + "{{ end }}{{ $first = false }}"
        parts.append('{{ if eq .Role "user" }}' + before + first + "{{ .Content }}" + after)
    parts.append('{{ else if eq .Role "assistant" }}' + _text(chat.answer_open) + _turn(chat.answer))
    parts.append(_text(chat.answer_close))
    parts.append("{{ end }}{{ end }}" + _text(chat.answer_open))
    return "".join(parts)


def modelfile(tuned: TunedModel, *, gguf_name: str) -> str:
    """The Modelfile's text, for a GGUF file in the same folder.

    Temperature 0 and no repetition penalty, as the run is evaluated; the context is the model's own, up to 8,192
    tokens, since Ollama's default cuts conversations off at 4,096 or less without a word.
    """
    family, facts = tuned.family, provenance(tuned.run, tuned.manifest)
    context = min(int(tuned.config.max_position_embeddings), 8192)
    lines = [
        f"# {facts.name}; base {facts.base}; data {facts.data}",
        f"FROM ./{gguf_name}",
        "",
        f'TEMPLATE """{go_template(family.chat, engine_adds_bos=family.gguf.add_bos)}"""',
        "",
    ]
    if family.chat.default_system:
        lines += [f'SYSTEM """{family.chat.default_system}"""', ""]
    lines += [f'PARAMETER stop "{token}"' for token in family.stop_tokens]
    lines += [f"PARAMETER num_ctx {context}", "PARAMETER temperature 0", "PARAMETER repeat_penalty 1.0", ""]
    lines += [f'LICENSE """{facts.licence}"""', ""]
    return "\n".join(lines)


def _turn(form: str) -> str:
    before, after = form.split("{content}")
    return _text(before) + "{{ .Content }}" + _text(after)


def _text(text: str) -> str:
    """Literal text; what Go would take for an action or a Modelfile for its closing quotes is written as a string."""
    if "{{" in text or "}}" in text or '"""' in text:
        quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return '{{ "' + quoted + '" }}'
    return text
