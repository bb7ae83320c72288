"""Hooks of mkdocs: the site is made of docs/, of what its pages link to elsewhere in the repository, and of what the
package says of itself (`generated.py`).

Links are written as files lie on disk, so that they also work where the repository is browsed.
"""

import re
from pathlib import Path
from posixpath import dirname, relpath

from generated import PARTS
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
_PART = re.compile(r"<!-- generated: ([\w-]+) -->")


def on_files(files, config):
    """Add what pages link to outside of docs/, and what is linked to from there."""
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for _, _, path, _ in _LINK.findall(Path(page.abs_src_path).read_text(encoding="utf-8")):
            uri = _uri(page, path)
            if uri is None or not (ROOT / uri).is_file() or files.get_file_from_path(uri):
                continue
            linked = File(uri, str(ROOT), config.site_dir, config.use_directory_urls)
            files.append(linked)
            if linked.is_documentation_page():
                waiting.append(linked)
    return files


def on_page_markdown(markdown, page, config, files):
    """Fill in what is generated, and lead links to where their files are in the site."""

    def link(found: re.Match[str]) -> str:
        bang, text, path, anchor = found.groups(default="")
        uri = _uri(page.file, path)
        if uri is None:
            return found[0]
        if (ROOT / uri).is_dir():  # has no page
            return text
        return f"{bang}[{text}]({relpath(uri, dirname(page.file.src_uri))}{anchor})"

    return _LINK.sub(link, _PART.sub(lambda found: PARTS[found[1]](), markdown))


def _uri(page: File, path: str) -> str | None:
    """Where in the site a linked file of the repository is; None for what is not there on disk."""
    target = (Path(page.abs_src_path).parent / path).resolve()
    if not (target.exists() and target.is_relative_to(ROOT)):
        return None
    within = target.relative_to(ROOT).as_posix()
    return "index.md" if within == "README.md" else within.removeprefix("docs/")
