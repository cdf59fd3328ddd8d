"""Cards of the hub: Markdown from a template, with the metadata that the hub reads on top."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml


def render_card(template: Path, metadata: Mapping[str, Any], **values: Any) -> str:
    """Return a card; the template shows `metadata`, and has the filter `line` (`one_line`)."""
    environment = jinja2.Environment(
        autoescape=False,  # Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["line"] = one_line
    on_top = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True).strip()
    text = template.read_text(encoding="utf-8")
    return environment.from_string(text).render(metadata=on_top, **values)


def one_line(text: object) -> str:
    """Return a text as one line that ends neither a code span nor a table's cell."""
    return " ".join(str(text).split()).replace("`", "'").replace("|", "/")
