"""What the build does besides rendering: runs the snippets, fills in the tables, draws the pictures, sets the equations
as MathML, and checks that the site fetches nothing from elsewhere."""

import html
import logging
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from latex2mathml import converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import pictures
import snippets
import tables

LOG = logging.getLogger("mkdocs.hooks.gradtx")

_run = True


def on_startup(command: str, dirty: bool) -> None:
    global _run
    _run = command != "serve"  # while writing, pages reload at once; `mkdocs build` runs the snippets


def on_config(config: MkDocsConfig) -> None:
    """Decisions and derivations live beside the pages; each goes into the navigation under its own title."""
    for folder in ("decisions", "derivations"):
        section = next(entry[folder.capitalize()] for entry in config.nav if folder.capitalize() in entry)
        section += [f"{folder}/{path.name}" for path in snippets.texts(folder)]


def on_files(files: Files, config: MkDocsConfig) -> None:
    for folder in ("decisions", "derivations"):
        for path in [snippets.ROOT / "docs" / folder / "index.md", *snippets.texts(folder)]:
            files.append(File.generated(config, f"{folder}/{path.name}", abs_src_path=str(path)))


def on_pre_build(config: MkDocsConfig) -> None:
    if not _run:
        return
    pictures.races()
    pictures.training()
    pictures.steps()
    pictures.matrix_methods()
    # The pages with pictures draw them, each in a process of its own; the others share one.
    others = [page for page in snippets.pages() if not snippets.has_pictures(page)]
    drawn = [[page] for page in snippets.pages() if snippets.has_pictures(page)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run_snippets, [others, *drawn]))


def _run_snippets(pages: list[Path]) -> None:
    command = [sys.executable, snippets.__file__, "--draw", *map(str, pages)]
    with tempfile.TemporaryDirectory() as folder:  # what a snippet saves does not land in the checkout
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise PluginError(f"a snippet of {', '.join(page.name for page in pages)} failed:\n{ended.stderr}")
    LOG.info(ended.stdout.strip())


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """`<!-- table: name argument -->` becomes what `tables.name("argument")` returns."""

    def table(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        return getattr(tables, name)(*arguments)

    return re.sub(r"<!-- table: (.+?) -->", table, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Equations are MathML, which browsers draw by themselves: no script, no font."""

    def inline(match: re.Match[str]) -> str:
        return converter.convert(html.unescape(match[1]), display="inline")

    def block(match: re.Match[str]) -> str:
        return f'<div class="equation">{converter.convert(html.unescape(match[1]), display="block")}</div>'

    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', inline, content, flags=re.DOTALL)
    return re.sub(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', block, content, flags=re.DOTALL)


# What a browser loads by itself. A link to elsewhere that the reader may click is fine.
_LOADED = [
    re.compile(
        r"<(?:script|img|iframe|source|audio|video|embed)\b[^>]*?\bsrc(?:set)?\s*=\s*[\"']?((?:https?:)?//[^\s\"'>]+)",
        re.I,
    ),
    re.compile(
        r"<link\b(?=[^>]*\brel\s*=\s*[\"']?(?:stylesheet|icon|preload|prefetch|preconnect|modulepreload|manifest))"
        r"[^>]*?\bhref\s*=\s*[\"']?((?:https?:)?//[^\s\"'>]+)",
        re.I,
    ),
    re.compile(r"url\(\s*[\"']?((?:https?:)?//[^\s\"')]+)", re.I),
    re.compile(r"class=\"(mermaid)\""),  # the theme would load the script that draws it
    re.compile(r"@import\s+[\"']((?:https?:)?//[^\"']+)", re.I),
]


def fetched(text: str) -> list[str]:
    """The addresses elsewhere that a page or style sheet makes the browser load."""
    return [address for pattern in _LOADED for address in pattern.findall(text)]


def on_post_build(config: MkDocsConfig) -> None:
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css", ".svg"):
            for address in fetched(path.read_text()):
                page = path.relative_to(config.site_dir)
                raise PluginError(f"{page} loads {address}; the site must be complete in itself")
