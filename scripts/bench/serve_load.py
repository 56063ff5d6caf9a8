"""The mixture of requests that `serve.py` sends, and the verdict on what came of it."""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

TOPICS = ("the sea", "a prime number", "bread", "sorting a list", "the moon", "a triangle", "rain", "a proverb")
DONE = "data: [DONE]"


@dataclass(frozen=True)
class Question:
    """A request with one right answer."""

    route: str
    body: dict[str, Any]


@dataclass
class Load:
    """The mixture, what came of it, and the verdict."""

    arguments: argparse.Namespace
    url: str
    process: psutil.Process
    right: dict[int, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    async def run(self) -> int:
        """Asks all questions alone, then the mixture; prints what came of it."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.arguments.concurrency)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as self.client:
            models = [model["id"] for model in (await self.client.get("/v1/models")).json()["data"]]
            self.questions = [
                question(topic, model, route, self.arguments.tokens)
                for topic in TOPICS
                for model in models
                for route in ("/generate", "/v1/chat/completions", "/v1/completions")
            ]
            for number in range(len(self.questions)):
                self.right[number] = await self.whole(number)
            started = time.perf_counter()
            rss = await self.mixture()
            seconds = time.perf_counter() - started
            await self.afterwards()
        distinct = len(set(self.right.values()))
        print(f"{self.arguments.requests} requests, {self.arguments.concurrency} at once, in {seconds:.1f} s")
        print(f"{len(self.questions)} questions with {distinct} different answers to {len(models)} models")
        for name, count in sorted(self.counts.items()):
            print(f"  {name:<34}{count:>6}")
        grown = (rss[-1] - rss[0]) / 2**20
        print(f"memory after each tenth, MiB: {' '.join(f'{size / 2**20:.0f}' for size in rss)} ({grown:+.1f})")
        if grown > self.arguments.growth:
            self.faults.append(f"memory grew by {grown:.1f} MiB")
        for fault in self.faults[:20]:
            print(f"FAULT: {fault}")
        print(
            "healthy; every accepted request was answered once and whole, none mixed" if not self.faults else "FAILED"
        )
        return 1 if self.faults else 0

    async def mixture(self) -> list[int]:
        """All requests; returns the worker's memory at each tenth of them."""
        rng = random.Random(self.arguments.seed)
        kinds: list[tuple[Callable[[random.Random], Awaitable[None]], float]] = [
            (self.ask_whole, 0.3),
            (self.ask_streamed, 0.25),
            (self.leave, 0.15),
            (self.read_slowly, 0.08),
            (self.send_rubbish, 0.14),
            (self.ask_too_much, 0.08),
        ]
        work = rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds], k=self.arguments.requests)
        todo = iter(enumerate(work))
        rss: list[int] = []

        async def client() -> None:
            for number, kind in todo:
                await kind(random.Random(f"{self.arguments.seed}:{number}"))
                if number and number % (self.arguments.requests // 10) == 0:
                    rss.append(self.process.memory_info().rss)

        await asyncio.gather(*(client() for _ in range(self.arguments.concurrency)))
        return [*rss, self.process.memory_info().rss]

    async def ask_whole(self, rng: random.Random) -> None:
        number = rng.randrange(len(self.questions))
        self.check(number, await self.whole(number), "answered whole")

    async def ask_streamed(self, rng: random.Random) -> None:
        number = rng.randrange(len(self.questions))
        self.check(number, await self.streamed(number), "answered in a stream")

    async def read_slowly(self, rng: random.Random) -> None:
        number = rng.randrange(len(self.questions))
        self.check(number, await self.streamed(number, pause=rng.uniform(0.01, 0.05)), "answered to a slow reader")

    async def leave(self, rng: random.Random) -> None:
        """Goes away after a moment, in the middle of an answer or before it; sometimes it is complete by then."""
        asked = self.questions[rng.randrange(len(self.questions))]
        stream = rng.random() < 0.5
        self.counts["left by the client"] += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0.0, 0.4)):
                body = {**asked.body, "stream": stream, "max_tokens": 200}
                async with self.client.stream("POST", asked.route, json=body) as answer:
                    async for _ in answer.aiter_bytes(16):
                        await asyncio.sleep(0.01)

    async def send_rubbish(self, rng: random.Random) -> None:
        """Requests that must be refused, each with its own status."""
        asked = self.questions[rng.randrange(len(self.questions))]
        good = json.dumps(asked.body)
        content, status = rng.choice(
            [
                (good[: rng.randrange(1, len(good))], 400),
                (good[:-1] + ', "colour": "red"}', 400),
                (good[:-1] + ', "max_tokens": "six"}', 400),
                (good[:-1] + ', "model": "../../etc/passwd"}', 404),
                (good[:-1] + ', "user": "' + "x" * 3_000_000 + '"}', 413),
                ("[" * 50_000, 400),
                ("", 400),
            ]
        )
        headers = {"content-type": "application/json"}
        answer = await self.client.post(asked.route, content=content, headers=headers)
        self.refused(answer, status, "refused: rubbish")

    async def ask_too_much(self, rng: random.Random) -> None:
        prompt = "too long " * self.arguments.context
        answer = await self.client.post("/generate", json={"prompt": prompt})
        self.refused(answer, 400, "refused: longer than the context")

    def refused(self, answer: httpx.Response, status: int, name: str) -> None:
        if answer.status_code == 429:  # there was no room to look at it
            self.counts["refused: queue full"] += 1
        elif answer.status_code != status or set(answer.json()) != {"error"}:
            self.faults.append(f"{name}: status {answer.status_code} for {status}: {answer.text[:200]}")
        else:
            self.counts[name] += 1

    def check(self, number: int, text: str, name: str) -> None:
        """Compares an answer with the one given alone."""
        self.counts[name] += 1
        if text == self.right[number]:
            return
        others = {other for index, other in self.right.items() if index != number}
        if text in others or not self.arguments.loose:
            kind = "another request's answer" if text in others else "another answer than alone"
            self.faults.append(f"{self.questions[number]}: {kind}: {text[:80]!r} for {self.right[number][:80]!r}")
        else:
            self.counts["of them, near ties fell otherwise"] += 1

    async def whole(self, number: int) -> str:
        """A question's answer as one object."""
        asked = self.questions[number]
        while True:
            answer = await self.client.post(asked.route, json=asked.body)
            if not await self.again(answer):
                break
        body = answer.json()
        if answer.status_code != 200:
            self.faults.append(f"{asked}: status {answer.status_code}: {answer.text[:200]}")
            return ""
        return text_of(body if "choices" not in body else body["choices"][0])

    async def streamed(self, number: int, *, pause: float = 0.0) -> str:
        """The same from a stream, which must have one end."""
        asked = self.questions[number]
        while True:
            async with self.client.stream("POST", asked.route, json={**asked.body, "stream": True}) as answer:
                if await self.again(answer):
                    continue
                received = bytearray()
                async for part in answer.aiter_raw(64):
                    received += part
                    await asyncio.sleep(pause)
            break
        lines = [line for line in received.decode().split("\n") if line.startswith("data: ")]
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line != DONE]
        ends = [e for e in events if "finish_reason" in e or any(c["finish_reason"] for c in e.get("choices", []))]
        if answer.status_code != 200 or len(ends) != 1 or lines.count(DONE) != ("choices" in events[0]):
            self.faults.append(f"{asked}: a stream with {len(ends)} ends: {lines[-1:]}")
        return "".join(text_of(c) for e in events for c in e.get("choices", [e]))

    async def again(self, answer: httpx.Response) -> bool:
        """Whether the queue was full; waits a moment then, less than Retry-After says, to keep it full."""
        if answer.status_code != 429:
            return False
        assert int(answer.headers["retry-after"]) >= 1
        self.counts["refused: queue full"] += 1
        await asyncio.sleep(0.3)
        return True

    async def afterwards(self) -> None:
        """The server must be idle, and answer as before."""
        for _ in range(100):
            health = (await self.client.get("/health")).json()
            if health["running"] == health["waiting"] == 0:
                break
            await asyncio.sleep(0.1)
        else:
            self.faults.append(f"not idle afterwards: {health}")
        if health["status"] != "ready" or (await self.client.get("/livez")).status_code != 200:
            self.faults.append(f"not healthy afterwards: {health}")
        for number in range(0, len(self.questions), 7):
            self.check(number, await self.whole(number), "asked again afterwards")


def question(topic: str, model: str, route: str, tokens: int) -> Question:
    """A greedy question by one of the routes."""
    text = f"Tell me something about {topic}."
    asked: dict[str, Any] = {"model": model, "max_tokens": tokens, "temperature": 0}
    if route == "/v1/chat/completions":
        return Question(route, {**asked, "messages": [{"role": "user", "content": text}]})
    return Question(route, {**asked, "prompt": text})


def text_of(choice: dict[str, Any]) -> str:
    """The text of a choice or an event, in whichever of the routes' shapes."""
    part = choice.get("message") or choice.get("delta") or choice
    return str(part.get("content") or part.get("text") or "")
