"""Stages run in any locale and terminal, and with their progress bars off."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Python reads and writes UTF-8 where the locale is C, unless it is told not to.
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "TQDM_DISABLE": "1"}


def run_in_ascii(*command, cwd=ROOT):
    """Run a stage where no other letters than ASCII's can be printed."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=cwd,
        env={**os.environ, **ASCII_LOCALE, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="ascii",
        errors="strict",
    )


def test_letters_that_the_terminal_lacks_are_printed_as_escapes():
    done = run_in_ascii("world_modality.precompute_world_tokens", "--help")
    assert done.returncode == 0, done.stderr
    assert "cuda:1, \\u2026" in done.stdout


def test_a_file_with_other_letters_than_asciis_is_read_as_utf8(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "matrix.yaml").write_text("größe: 1\n", encoding="utf-8")
    done = run_in_ascii("world_modality.experiment", "matrix.yaml", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no key 'gr\\xf6\\xdfe' in the matrix of matrix.yaml")


def opens_text(call):
    """Whether a call opens a file as text, whose encoding it could leave to the locale."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in {"read_text", "write_text", "open", "fdopen"}:
        return False
    # `open` is the name of other things, too: a file is opened by a mode, or by a name alone.
    modes = {value.value for value in call.args if isinstance(value, ast.Constant)} - {None}
    is_text = any(set(str(mode)) <= set("rwaxt+") for mode in modes)
    return "_text" in name or isinstance(call.func, ast.Name) or is_text


def test_every_text_file_is_opened_with_its_encoding():
    missing = []
    for package in ("world_modality", "coc_vla", "benchmarks", "ops"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Call) and opens_text(node):
                    names = {keyword.arg for keyword in node.keywords}
                    if not names & {"encoding", "format"}:  # a film has a format
                        missing.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert missing == []
