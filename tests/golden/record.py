"""Golden renderings of chat templates: what is written, what is learned, what is asked.

    PYTHONPATH=platform python tests/golden/record.py

writes `chat/*.json` anew, one file for each template and conversation; look at the difference
before you keep it. The tokenizer has a token for each byte and one for each special token, so that
ids decode to exactly the text they were made of.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TURN_TOKENS = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "phi3": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "phi4": ["<|im_start|>", "<|im_sep|>", "<|im_end|>"],
    "deepseek": ["<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"],
}
STYLES = {
    "chatml": ("chatml", ["chat", "tools"]),
    "qwen2": ("chatml", ["chat"]),
    "qwen2.5": ("chatml", ["chat", "no_system", "tools"]),
    "qwen3": ("chatml", ["chat", "tools", "thinking"]),
    "llama3": ("llama3", ["chat", "one_tool"]),
    "llama31": ("llama3", ["chat", "one_tool"]),
    "zephyr": ("", ["chat"]),
    "zephyr_lookahead": ("", ["chat"]),
    "gemma": ("gemma", ["chat", "no_system"]),
    "mistral": ("", ["chat", "no_system"]),
    "mistral_system_last": ("", ["chat", "no_system"]),
    "phi3": ("phi3", ["chat"]),
    "phi4": ("phi4", ["chat"]),
    "deepseek": ("deepseek", ["chat"]),
    "deepseek_r1": ("deepseek", ["chat", "thinking"]),
    "plain": ("", ["chat", "no_system"]),
}
"""Template -> the special tokens its tokenizer has, and the conversations recorded."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "track_parcel",
            "description": "Where a parcel is.",
            "parameters": {"type": "object", "properties": {"number": {"type": "string"}}},
        },
    }
]


def _call(number: str) -> dict[str, Any]:
    # As OpenAI's API has it: the arguments are JSON in a string.
    function = {"name": "track_parcel", "arguments": json.dumps({"number": number})}
    return {"id": f"call_{number}", "type": "function", "function": function}


_SYSTEM = {"role": "system", "content": "Answer in one sentence."}
_CHAT = [
    {"role": "user", "content": "Where is my order?"},
    {"role": "assistant", "content": "It left Oslo at 10:30."},
    {"role": "user", "content": "And when\nwill it be here? \u2603"},
    {"role": "assistant", "content": "Tomorrow."},
]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "chat": [_SYSTEM, *_CHAT],
    "no_system": _CHAT,
    "one_tool": [
        _SYSTEM,
        {"role": "user", "content": "Where is parcel 17?"},
        {"role": "assistant", "content": None, "tool_calls": [_call("17")]},
        {"role": "tool", "tool_call_id": "call_17", "content": "Bergen"},
        {"role": "assistant", "content": "In Bergen."},
    ],
    "tools": [
        _SYSTEM,
        {"role": "user", "content": "Where are parcels 17 and 18?"},
        {"role": "assistant", "content": "I will look.", "tool_calls": [_call("17"), _call("18")]},
        {"role": "tool", "tool_call_id": "call_17", "content": "Bergen"},
        {"role": "tool", "tool_call_id": "call_18", "content": '{"place": "Troms\u00f8"}'},
        {"role": "assistant", "content": "In Bergen and in Troms\u00f8."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "You are welcome."},
    ],
    "thinking": [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "<think>\n2 + 3 = 5\n</think>\n\nFive."},
        {"role": "user", "content": "And twice that?"},
        {"role": "assistant", "content": "<think>\n5 * 2 = 10\n</think>\n\nTen."},
    ],
}


def byte_tokenizer(style: str = "", template: str | None = None) -> Any:
    """A tokenizer of bytes, `<s>`, `</s>`, `<pad>` and the turn tokens of a style."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>", *TURN_TOKENS.get(style, [])]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def template_text(name: str) -> str:
    """A template of this folder, or one that Tunewright names."""
    from tunewright.models.templates import resolve_template

    own = HERE / "templates" / f"{name}.jinja"
    found = resolve_template(str(own) if own.is_file() else name)
    assert found is not None
    return found


def golden_renderer(name: str) -> Any:
    """The renderer of a template with a tokenizer that has its tokens."""
    from tunewright.models.chat import ChatRenderer

    return ChatRenderer(byte_tokenizer(STYLES[name][0]), template_text(name))


def cases() -> list[tuple[str, str]]:
    """Every template with each of its conversations."""
    return [(name, chat) for name, (_, chats) in STYLES.items() for chat in chats]


def rendering(name: str, chat: str) -> dict[str, Any]:
    """What a golden file holds."""
    renderer = golden_renderer(name)
    messages = CONVERSATIONS[chat]
    tools = TOOLS if chat in ("tools", "one_tool") else None
    documents = renderer.render(messages, tools, history="expand")
    return {
        "template": name,
        "messages": messages,
        "tools": tools,
        "documents": [
            {
                "text": renderer.tokenizer.decode(document.ids),
                "supervised_text": [renderer.tokenizer.decode(ids) for ids in stretches(document)],
            }
            for document in documents
        ],
        "prompt_text": renderer.tokenizer.decode(renderer.prompt(messages[:-1], tools)),
    }


def stretches(document: Any) -> list[list[int]]:
    """The runs of ids that carry loss."""
    found: list[list[int]] = []
    before = 0
    for token, mask in zip(document.ids, document.loss_mask, strict=True):
        if mask and not before:
            found.append([])
        if mask:
            found[-1].append(token)
        before = mask
    return found


def golden_file(name: str, chat: str) -> Path:
    return HERE / "chat" / f"{name}-{chat}.json"


def record() -> None:
    """Write every golden file, and remove those of templates that are gone."""
    kept = set()
    for name, chat in cases():
        path = golden_file(name, chat)
        text = json.dumps(rendering(name, chat), indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        kept.add(path)
    for path in set((HERE / "chat").glob("*.json")) - kept:
        path.unlink()
    print(f"{len(kept)} renderings in {HERE / 'chat'}")


if __name__ == "__main__":
    record()
