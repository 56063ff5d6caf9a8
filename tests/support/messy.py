"""A 5,000-row CSV as it comes out of a spreadsheet: semicolons, cp1252, copies, holes, a card number, stray quotes."""

import random
from pathlib import Path

TOPICS = (
    "Rückgabe", "Lieferung", "Rechnung", "Passwort", "Größe", "Gutschein", "Vertrag", "Störung", "Öffnungszeiten",
    "Kündigung", "Prämie", "Zahlung", "Adresse", "Bestellung", "Garantie", "Beratung", "Ersatzteil", "Anmeldung",
)  # fmt: skip
PLACES = (
    "Köln",
    "München",
    "Düsseldorf",
    "Nürnberg",
    "Lübeck",
    "Göttingen",
    "Tübingen",
    "Würzburg",
    "Görlitz",
    "Fürth",
)
ASKED = (
    "Wie funktioniert die {topic} in der Filiale {place}, wenn mein Vorgang die Nummer {number} hat?",
    "Ich habe am {day}. eine Frage zur {topic} in {place} gestellt (Vorgang {number}). Was ist der Stand?",
    "Wer hilft mir in {place} weiter? Es geht um {topic}; die Kundennummer ist {number}.",
    "Kann ich die {topic} vom {day}. noch ändern? Filiale {place}, Auftrag {number}.",
)
ANSWERED = (
    "Für die {topic} ist in {place} die Abteilung {other} zuständig.",
    "Bitte halten Sie die Nummer {number} bereit – das beschleunigt die {topic} sehr.",
    "Sie erreichen uns bis {hour} Uhr; außerhalb dieser Zeit hilft der Bereich „{other}“.",
    "Die Bearbeitung dauert üblicherweise {day} Werktage, bei {other} auch länger.",
    "Über die {topic} entscheidet die Filiale {place} noch am selben Tag.",
    "Falls etwas unklar bleibt: Der Vorgang {number} wird unter {other} weitergeführt.",
)
FACTS = {"rows": 5000, "copies": 150, "empty": 80, "cards": 1, "broken": 2, "control": 5}
"""What was put in; the rest is good."""


def messy_csv(path: Path) -> Path:
    """Writes the file (the same one every time)."""
    chance = random.Random(42)
    rows: list[tuple[str, str, str]] = []
    while len(rows) < 5000 - FACTS["copies"] - FACTS["broken"]:
        topic = chance.choice(TOPICS)
        facts = {
            "topic": topic, "place": chance.choice(PLACES), "other": chance.choice(TOPICS),
            "number": chance.randrange(10_000, 99_999), "day": chance.randrange(2, 28), "hour": chance.randrange(8, 20),
        }  # fmt: skip
        parts = chance.sample(ANSWERED, chance.randrange(2, 5))
        answer = " ".join(part.format(**{**facts, "other": chance.choice(TOPICS)}) for part in parts)
        rows.append((chance.choice(ASKED).format(**facts), answer, topic))
    for row in chance.sample(range(len(rows)), FACTS["empty"]):
        rows[row] = (rows[row][0], chance.choice(["", " ", "\t"]), rows[row][2])
    whole = [n for n, row in enumerate(rows) if row[1].strip()]
    for row in chance.sample(whole, FACTS["control"]):
        rows[row] = (rows[row][0], rows[row][1].replace(" ", " \x0b", 1), rows[row][2])
    paid = chance.choice(whole)
    rows[paid] = (rows[paid][0], rows[paid][1] + " Meine Karte: 4111 1111 1111 1111.", rows[paid][2])
    for copied in [rows[row] for row in chance.sample(whole, FACTS["copies"])]:
        rows.insert(chance.randrange(len(rows)), copied)
    lines = ["Frage;Antwort;Kategorie"]
    for question, answer, topic in rows:
        cells = [
            f'"{c.replace(chr(34), chr(34) * 2)}"' if ";" in c or '"' in c else c for c in (question, answer, topic)
        ]
        lines.append(";".join(cells))
    lines.insert(1200, '"Wo finde ich meinen Vertrag?;Im Konto;Vertrag')
    lines.insert(3300, "Eine halbe Zeile;und sonst nichts")
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode("cp1252"))
    return path
