"""The page, its docs, and what goes with every answer; nothing is loaded from elsewhere."""

import base64
import hashlib
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse

from evaluation.reports.page import PAGE, STYLE

NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": NOTHING,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "PNG, JPEG, TIFF, BMP, WebP or DICOM; told by content",
                        },
                        "body_part": {
                            "type": "string",
                            "description": "for an ensemble whose voter needs it",
                        },
                        "frame": {
                            "type": "integer",
                            "description": "which frame of files with several",
                        },
                        "maps": {
                            "type": "boolean",
                            "default": False,
                            "description": "Grad-CAM of the ensemble and of each member as PNGs",
                        },
                    },
                }
            }
        },
    }
}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "not a form, or a field that is not known"},
    401: {"description": "the token is missing or wrong"},
    408: {"description": "the body did not come in time"},
    413: {"description": "more bytes than are allowed"},
    415: {"description": "not a picture, by its first bytes"},
    422: {"description": "a picture that cannot be read; the reason names it"},
    503: {"description": "no room; Retry-After says in how many seconds"},
}


def answer(text: str) -> HTMLResponse:
    """A page under a policy that lets only its own style, its own script and its own origin."""
    parts = {tag: re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S) for tag in ("style", "script")}
    rules = [f"{tag}-src {' '.join(map(_hash, found))}" for tag, found in parts.items() if found]
    policy = "; ".join([NOTHING, *rules, "img-src 'self' data: blob:", "connect-src 'self'"])
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


def page(title: str) -> str:
    """The page on which pictures are dropped."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return text.replace("{title}", html.escape(title))


def docs(schema: dict[str, Any]) -> str:
    """The API for a reader: every path with its fields and statuses, and how to call it."""
    paths = [_path(path, how) for path, how in schema["paths"].items()]
    parts = [_part(name, schema["components"]["schemas"][name]) for name in ("Answer", "Vote")]
    body = "\n".join([EXAMPLE, *paths, *parts])
    return PAGE.format(title="Consilium: the API", style=STYLE + DOCS, body=body)


DOCS = """
table { margin-bottom: 1rem; }
pre { background: #f5f5f5; padding: .8rem 1rem; overflow-x: auto; font-size: .86rem; }
"""
EXAMPLE = """
<p class="lead">One request, one or more pictures, one answer a picture.</p>
<pre>curl -F files=@film.png -F files=@other.dcm http://127.0.0.1:8000/v1/predict</pre>
<pre>import requests

with open("film.png", "rb") as film:
    said = requests.post("http://127.0.0.1:8000/v1/predict", files={"files": film}).json()
print(said["answers"][0]["class"], said["answers"][0]["confidence"])</pre>
<p>An error is <code>{"detail": reason}</code>. With a token, send
<code>Authorization: Bearer TOKEN</code>. The schema for machines:
<a href="/openapi.json">/openapi.json</a>. The page for people: <a href="/">/</a>.
Research use only. Not a medical device.</p>
"""


def _part(name: str, said: dict[str, Any]) -> str:
    rows = ((field, how.get("description", "")) for field, how in said["properties"].items())
    about = f"<h2>{name}</h2><p>{html.escape(said.get('description', ''))}</p>"
    return f"<section>{about}{_table('field', rows)}</section>"


def _path(path: str, methods: dict[str, Any]) -> str:
    return "".join(_method(path, verb, said) for verb, said in methods.items())


def _method(path: str, verb: str, said: dict[str, Any]) -> str:
    about = "".join(f"<p>{html.escape(p)}</p>" for p in said.get("description", "").split("\n\n"))
    return (
        f"<section><h2>{verb.upper()} {html.escape(path)}</h2>{about}"
        f"{_table('field', _fields(said))}{_table('status', _statuses(said))}</section>"
    )


def _fields(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    content = said.get("requestBody", {}).get("content", {})
    for kind in content.values():
        for name, field in kind["schema"].get("properties", {}).items():
            yield name, f"{field['type']}: {field['description']}"


def _statuses(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((code, found["description"]) for code, found in said["responses"].items())


def _table(head: str, rows: Iterator[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f"<table><tr><th>{head}</th><th></th></tr>{cells}</table>" if cells else ""


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
