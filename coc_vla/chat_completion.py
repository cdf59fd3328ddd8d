"""The words of OpenAI's chat completions: a question as JSON, and an answer read from it."""

import json
from collections.abc import Mapping
from typing import Any

from coc_vla.pictures import image_url
from coc_vla.vlm import VlmAnswer, VlmRequest


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
    gives events instead; they are put together.

    Raises:
        NonsenseError: it is neither.
    """
    try:
        content = json.loads(_joined_events(reply) if reply.startswith(b"data:") else reply)
        choice = content["choices"][0]
        text = choice["message"]["content"]
        usage = content.get("usage") or {}
        num_tokens = usage.get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise NonsenseError(reply[:120].decode(errors="replace")) from error
    if not isinstance(text, str):
        raise NonsenseError(f"a message with content {text!r}"[:120])
    return VlmAnswer(
        text,
        num_tokens if type(num_tokens) is int else None,
        seconds,
        is_cut_off=choice.get("finish_reason") == "length",
    )


def _joined_events(reply: bytes) -> str:
    """Return the completion that a stream of events makes up; it has to have come to its end."""
    lines = [line.removeprefix(b"data:").strip() for line in reply.splitlines() if line.strip()]
    events = [json.loads(line) for line in lines if line != b"[DONE]"]
    choices = [event["choices"][0] for event in events if event.get("choices")]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    reasons = [c["finish_reason"] for c in choices if c.get("finish_reason")]
    if not reasons:
        raise ValueError("the stream has no end")
    choice = {"message": {"content": text}, "finish_reason": reasons[-1]}
    usages = [event["usage"] for event in events if event.get("usage")]
    return json.dumps({"choices": [choice], "usage": usages[-1] if usages else None})


def read_model_names(reply: bytes) -> list[str]:
    """Return the models that a reply lists; none where it lists nothing."""
    try:
        content: Mapping[str, Any] = json.loads(reply)
        return [str(model["id"]) for model in content["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
