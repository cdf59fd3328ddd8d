"""The words of OpenAI's chat completions: a question as JSON, and an answer read from it."""

import json
from collections.abc import Mapping
from typing import Any

from coc_vla.authors.pictures import image_url
from coc_vla.authors.vlm import VlmAnswer, VlmRequest

# Why a finished completion has no text, where the server does not say it in words.
_NO_TEXT = {
    "content_filter": "the server's content filter keeps the answer back",
    "tool_calls": "the model called a tool instead of writing",
    "function_call": "the model called a function instead of writing",
}


class NonsenseError(Exception):
    """The server answered, but not with a completion."""

    def __str__(self) -> str:
        return f"the server's answer is no completion: {super().__str__()}"


def message_content(request: VlmRequest) -> list[dict[str, Any]]:
    """Return an episode's pictures in order, then the question."""
    images = [
        {"type": "image_url", "image_url": {"url": image_url(image)}} for image in request.images
    ]
    return [*images, {"type": "text", "text": request.prompt}]


def read_completion(reply: bytes, seconds: float) -> VlmAnswer:
    """Read a completion, the body of a reply.

    A server that streams although it was not asked to (`transformers serve` of release 4 does)
    gives events instead; they are put together. A completion without a text is an answer, too: one
    that the token limit ended while the model thought is cut off and empty, one that was refused
    says why in `refusal`.

    Raises:
        NonsenseError: it is neither.
    """
    try:
        content = json.loads(_joined_events(reply) if reply.startswith(b"data:") else reply)
        choice = content["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, refusal = _text_of(message.get("content")), message.get("refusal")
        usage = content.get("usage") or {}
        num_tokens = usage.get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise NonsenseError(reply[:120].decode(errors="replace")) from error
    if not text.strip() and not refusal:
        if reason in _NO_TEXT:
            refusal = _NO_TEXT[reason]
        elif message.get("content") is None and reason not in ("stop", "length"):
            raise NonsenseError(f"no content, and finish_reason {reason!r}"[:120])
    return VlmAnswer(
        text,
        num_tokens if type(num_tokens) is int else None,
        seconds,
        is_cut_off=reason == "length",
        refusal=str(refusal) if refusal and not text.strip() else None,
    )


def _text_of(content: Any) -> str:
    """Return a message's text; some servers give it in parts, thoughts among them."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    if content is not None and not isinstance(content, str):
        raise TypeError
    return content or ""


def _joined_events(reply: bytes) -> str:
    """Return the completion that a stream of events makes up; it has to have come to its end."""
    lines = [line.removeprefix(b"data:").strip() for line in reply.splitlines() if line.strip()]
    events = [json.loads(line) for line in lines if line != b"[DONE]"]
    choices = [event["choices"][0] for event in events if event.get("choices")]
    message = {
        name: "".join(choice["delta"].get(name) or "" for choice in choices)
        for name in ("content", "refusal")
    }
    reasons = [c["finish_reason"] for c in choices if c.get("finish_reason")]
    if not reasons:
        raise ValueError("the stream has no end")
    choice = {"message": message, "finish_reason": reasons[-1]}
    usages = [event["usage"] for event in events if event.get("usage")]
    return json.dumps({"choices": [choice], "usage": usages[-1] if usages else None})


def read_model_names(reply: bytes) -> list[str]:
    """Return the models that a reply lists; none where it lists nothing."""
    try:
        content: Mapping[str, Any] = json.loads(reply)
        return [str(model["id"]) for model in content["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
