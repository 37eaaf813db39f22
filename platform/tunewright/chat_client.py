"""`tunewright chat`: talks to a running endpoint with the official OpenAI client."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import ServeError

if TYPE_CHECKING:
    from openai import OpenAI

INTERRUPTED = 130


def converse(
    message: str | None,
    url: str,
    model: str | None,
    system: str | None,
    key: str | None,
    store_root: Path,
    max_tokens: int | None,
) -> int:
    """Stream the answer to `message`, or to every line typed; returns the exit code.

    Raises:
        ServeError: nothing answers at `url`, or the endpoint refuses; in its own words.
    """
    import openai

    client = openai.OpenAI(base_url=url, api_key=key or stored_key(store_root), max_retries=1)
    try:
        chosen = model or first_model(client)
        history = [{"role": "system", "content": system}] if system else []
        if message is not None or not sys.stdin.isatty():
            _ask(client, chosen, history, sys.stdin.read() if message is None else message, max_tokens)
        else:
            _talk(client, chosen, history, max_tokens)
    except KeyboardInterrupt:
        print()
        return INTERRUPTED
    except openai.APIConnectionError:
        raise ServeError(f"nothing answers at {url}; start an endpoint with: tunewright deploy") from None
    except openai.APIStatusError as error:
        raise ServeError(f"{url} answered {error.status_code}: {_words(error)}") from None
    except openai.APIError as error:
        raise ServeError(f"{url} broke off: {error.message}") from None
    return 0


def stored_key(store_root: Path) -> str:
    """The endpoint's key in the store.

    Raises:
        ServeError: there is none yet.
    """
    path = store_root / "keys" / "endpoint.key"
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        raise ServeError(
            f"there is no key at {path}: give --key or TUNEWRIGHT_API_KEY; `tunewright deploy` makes one"
        ) from None


def first_model(client: OpenAI) -> str:
    """The model that the endpoint names first: the alias it serves."""
    return str(client.models.list().data[0].id)


def _talk(client: OpenAI, model: str, history: list[dict[str, str]], max_tokens: int | None) -> None:
    print(f"{model}; an empty line or Ctrl-D ends the conversation")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if not line:
            return
        _ask(client, model, history, line, max_tokens)


def _ask(
    client: OpenAI, model: str, history: list[dict[str, str]], text: str, max_tokens: int | None
) -> None:
    """Print the answer as it comes, and add question and answer to `history`."""
    history.append({"role": "user", "content": text.strip()})
    # Greedy: what the evaluation measured.
    limit: dict[str, Any] = {"temperature": 0} | ({} if max_tokens is None else {"max_tokens": max_tokens})
    messages: Any = history
    answer = ""
    with client.chat.completions.create(model=model, messages=messages, stream=True, **limit) as stream:
        for chunk in stream:
            part = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            answer += part
            print(part, end="", flush=True)
    print()
    history.append({"role": "assistant", "content": answer})


def _words(error: Any) -> str:
    """What the endpoint says, out of OpenAI's error object."""
    body = error.body
    return str(body.get("message", body)) if isinstance(body, dict) else str(error.message)
