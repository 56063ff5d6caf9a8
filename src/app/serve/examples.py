"""Requests to try in `/docs`."""

from fastapi.openapi.models import Example

GENERATE: dict[str, Example] = {
    "question": {"summary": "A question", "value": {"prompt": "What is a prime number?", "max_tokens": 64}},
    "conversation": {
        "summary": "A conversation, streamed, with sampling",
        "value": {
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": "What is a prime number?"},
            ],
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 42,
            "max_tokens": 64,
            "stream": True,
        },
    },
}

CHAT: dict[str, Example] = {
    "chat": {
        "summary": "A conversation",
        "value": {
            "messages": [{"role": "user", "content": "Say hello in French."}],
            "max_tokens": 32,
            "temperature": 0,
        },
    },
    "logprobs": {
        "summary": "Two answers with log-probabilities",
        "value": {
            "messages": [{"role": "user", "content": "Name a colour."}],
            "n": 2,
            "seed": 1,
            "logprobs": True,
            "top_logprobs": 3,
            "max_tokens": 8,
        },
    },
}

COMPLETION: dict[str, Example] = {
    "text": {
        "summary": "Go on from a text",
        "value": {"prompt": "def add(a, b):\n    return", "max_tokens": 8, "temperature": 0, "stop": "\n"},
    }
}

TOKENIZE: dict[str, Example] = {
    "text": {"summary": "A text", "value": {"prompt": "Hello, world", "return_token_strs": True}},
    "conversation": {
        "summary": "A conversation with its template",
        "value": {"messages": [{"role": "user", "content": "Hello"}]},
    },
}
