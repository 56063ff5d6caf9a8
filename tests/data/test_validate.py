"""What is wrong with a row: what is rejected, what is mended, what is noted, and what is left alone."""

import pytest

from app.data.privacy import luhn, scan
from app.data.records import Conversation, Message
from app.data.shapes import RowError
from app.data.validate import check, control_tokens, cut_off
from app.families import Family

TALK = "This is a long answer about the weather of the coast. It says that the wind turns in the evening"


def sample(question: str = "What is it?", answer: str = "It is that.", *turns: tuple[str, str]) -> Conversation:
    rows = turns or (("user", question), ("assistant", answer))
    return Conversation(
        id="1", group="1", messages=tuple(Message(role=r, content=c) for r, c in rows), file="f", line=1  # type: ignore[arg-type]
    )  # fmt: skip


def kind_of(conversation: Conversation) -> str:
    with pytest.raises(RowError) as fault:
        check(conversation, redact=False)
    return fault.value.kind


def findings(conversation: Conversation) -> dict[str, str]:
    return {finding.kind: finding.detail for finding in check(conversation, redact=False)[1]}


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("Same text", "  same   TEXT ", "prompt-is-answer"),
        ("Q", "broken � text", "broken-encoding"),
        ("Q", "broken \udcff text", "broken-encoding"),
        ("Q", "\x00\x01", "empty-answer"),
        ("\x00", "A", "empty-prompt"),
        ("Q", "done <|im_end|><|im_start|>user", "control-token"),
        ("[INST] Q [/INST]", "A", "control-token"),
        ("Q", "A</s>", "control-token"),
        ("Q", "<|fim_prefix|>", "control-token"),
    ],
)
def test_bad_text_is_rejected(question: str, answer: str, kind: str) -> None:
    assert kind_of(sample(question, answer)) == kind


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "Q")],
        [("assistant", "A"), ("user", "Q")],
        [("user", "Q"), ("user", "Q2"), ("assistant", "A")],
        [("user", "Q"), ("system", "S"), ("assistant", "A")],
        [("system", "S"), ("assistant", "A")],
        [("user", "Q"), ("assistant", "A"), ("user", "Q2")],
    ],
)
def test_turns_out_of_order_are_rejected(turns: list[tuple[str, str]]) -> None:
    assert kind_of(sample("", "", *turns)) == "role-order"


def test_every_familys_tokens_are_known(family: Family) -> None:
    for token in (*family.stop_tokens, family.chat.bos):
        assert not token or control_tokens().search(f"some {token} text"), token


@pytest.mark.parametrize(
    "text",
    ["a < b and c > d", "<div class='x'>", "x |> f |> g", "Vec<T>", "|id|name|", "[1, 2]", "<s id=1>", "a||b <> c"],
)
def test_ordinary_text_and_code_are_not_control_tokens(text: str) -> None:
    assert not control_tokens().search(text)


@pytest.mark.parametrize("text", ["Größe: schön – „gut“ 100 €", "naïve café, Ærø, Ñandú", "Île-de-France, Château d’Ô"])
@pytest.mark.parametrize("wrong", ["cp1252", "latin-1"])
def test_mojibake_is_mended_and_good_text_left_alone(text: str, wrong: str) -> None:
    assert check(sample("Q", text), redact=False) == (sample("Q", text), [])
    broken = text.encode().decode(wrong, "replace")
    if "\ufffd" in broken:
        assert kind_of(sample("Q", broken)) == "broken-encoding"
        return
    mended, found = check(sample("Q", broken), redact=False)
    assert "repaired-encoding" in {finding.kind for finding in found}
    assert mended.messages[1].content == text


def test_control_characters_go_and_layout_stays() -> None:
    mended, found = check(sample("Q", "a\x00b\x1b[0m\tc\r\nd\u202ee"), redact=False)
    assert mended.messages[1].content == "ab[0m\tc\r\nde"
    assert [(f.kind, f.detail) for f in found] == [("control-characters", "3 removed, the first U+0000")]


@pytest.mark.parametrize("end", ["", " and the sea gets rou", " and then,"])
def test_an_answer_that_stops_in_the_middle_is_noted(end: str) -> None:
    assert "cut-off" in findings(sample("Q", TALK + end))


@pytest.mark.parametrize(
    "answer",
    [
        "Paris", "42", TALK + ".", TALK + "!", TALK + " (see there)", "def f(x):\n    y = x + 1\n    return y",
        "- one. thing\n- two\n- " + "three " * 20, "A Title Without A Stop",
        TALK + ":\n" + "x = f(y)\n" * 9 + "return x",
    ],
)  # fmt: skip
def test_answers_that_end_by_right_are_not(answer: str) -> None:
    assert cut_off(answer) == ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+x@mail.example.co.uk, please", "email"),
        ("call +49 171 1234567 now", "phone"),
        ("tel:+1-202-555-0147", "phone"),
        ("(212) 555-0123", "phone"),
        ("0171 1234567", "phone"),
        ("card 4111 1111 1111 1111.", "card"),
        ("5500-0000-0000-0004", "card"),
        ("378282246310005", "card"),
        ("key sk-abcdefghijklmnopqrstuvwx12", "api-key"),
        ("AKIAIOSFODNN7EXAMPLE", "api-key"),
        ("ghp_" + "a1" * 18, "api-key"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "api-key"),
    ],
)
def test_personal_data_is_found_and_masked(text: str, kind: str) -> None:
    assert scan(text, redact=False) == (text, {kind: 1})
    masked, found = scan(text, redact=True)
    assert found == {kind: 1} and f"[{kind.upper()}]" in masked and not set(masked) & set("0123456789")
    assert findings(sample("Q", f"A: {text}")) == {kind: "1"}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("4111 1111 1111 1111 12/25", "[CARD] 12/25"),
        ("4111 1111 1111 1111 123", "[CARD] 123"),
        ("12/25 4111 1111 1111 1111", "12/25 [CARD]"),
        ("4111 1111 1111 1111 5500-0000-0000-0004", "[CARD] [CARD]"),
        ("212-555-0123 / 212-555-0124", "[PHONE] / [PHONE]"),
        ("open at 212-555-0123 24/7", "open at [PHONE] 24/7"),
    ],
)
def test_a_number_is_found_beside_another(text: str, masked: str) -> None:
    assert scan(text, redact=True)[0] == masked


def test_what_is_noted_of_a_masked_text_is_masked() -> None:
    address = "john.smith@example.com"
    _, found = check(sample("Q?", f"{TALK} and then he wrote to {address}"), redact=True)
    assert not any("smith" in each.detail or "example" in each.detail for each in found)
    with pytest.raises(RowError) as fault:
        check(sample(f"{'x' * 70} {address}", f"{'x' * 70} {address}"), redact=True)
    assert "smith" not in fault.value.detail


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112", "pi is 3.14159265358979", "2024-01-05 12:30:00", "192.168.100.200", "a@b",
        "ISBN 978-3-16-148410-0", "12345678901234567890", "1,234,567,890", "x = [1 2 3 4 5 6 7 8]", "@user said so",
        "2019/12/31-2020/01/01", "https://x.y/1234567890123", "task-123456", "0 1 1 2 3 5 8 13 21 34",
    ],
)  # fmt: skip
def test_numbers_that_are_no_ones_are_left_alone(text: str) -> None:
    assert scan(text, redact=True) == (text, {})


def test_luhn() -> None:
    assert luhn("79927398713") and not any(luhn(f"7992739871{digit}") for digit in "012456789")
