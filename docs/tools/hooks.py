"""What MkDocs does not do by itself: pages from outside docs/, and links to files of the project.

- RESULTS.md, CHANGELOG.md and the notebook become pages.
- The theme has pages that are opened from a folder fetch a script for their search from a server.
  They get it from docs/assets/ instead: nothing is ever asked of anybody.
- The pages of docs/ link to files beside docs/ as a checkout has them (``../fairseq_peft/cli.py``).
  Each such file becomes a page of its own that shows it, so the site is whole without a server of
  the project's source, and strict mode sees a link to a file that is gone.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
#: file of the project -> the page that it is.
PAGES = {
    "README.md": "index.md",
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "notebooks/quickstart.ipynb": "notebook.md",
}
SHIM = "https://unpkg.com/iframe-worker/shim"
LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")
#: Code within a sentence that is longer than a line: the theme breaks it, and no shorter one.
LONG = re.compile(r"(?<!<pre>)(?<!</span>)<code>(?=[^<]{60})")
LANGUAGES = {".py": "python", ".sh": "bash", ".yml": "yaml", ".toml": "toml"}


def place(path: str) -> str:
    """The file that a page of the site is in the project."""
    sources = {page: source for source, page in PAGES.items() if page != "index.md"}
    return sources.get(path, f"docs/{path}")


def page_of(source: str) -> str:
    """The page of the site that shows a file of the project."""
    if source in PAGES:
        return PAGES[source]
    if source.startswith("docs/"):
        return source[len("docs/") :]
    return f"source/{source}.md"


def notebook(path: Path) -> str:
    """The cells of a notebook, one below the other; a cell of ``%%bash`` is bash."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "code":
            magic, _, rest = text.partition("\n")
            text = f"```bash\n{rest}\n```" if magic == "%%bash" else f"```python\n{text}\n```"
        parts.append(text)
    return "\n\n".join(parts)


def shown(source: str) -> str:
    """A file as a page: its name, and itself."""
    path = ROOT / source
    text = path.read_text(encoding="utf-8").rstrip()
    language = LANGUAGES.get(path.suffix, "text")
    return f"# {path.name}\n\n`{source}`\n\n````{language}\n{text}\n````\n"


def targets(text: str, page: str) -> dict[str, str]:
    """link -> file of the project, of each link of a page that leads to one."""
    folder = posixpath.dirname(place(page))
    found = {}
    for _, target, _ in LINK.findall(text):
        source = posixpath.normpath(posixpath.join(folder, target))
        if (ROOT / source).is_file():
            found[target] = source
    return found


def on_files(files: Files, config) -> Files:
    for source, page in PAGES.items():
        if page != "index.md":
            path = ROOT / source
            text = notebook(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
    linked = {
        source
        for file in files.documentation_pages()
        for source in targets(file.content_string, file.src_uri).values()
        if page_of(source).startswith("source/")
    }
    for source in sorted(linked):
        file = File.generated(config, page_of(source), content=shown(source))
        file.inclusion = file.inclusion.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    src = page.file.src_uri
    if src.startswith("source/"):
        page.meta["search"] = {"exclude": True}
        return markdown
    found = targets(markdown, src)

    def link(match):
        target = match[2]
        if target in found:
            target = posixpath.relpath(page_of(found[target]), posixpath.dirname(src) or ".")
        return match[1] + target + match[3]

    return LINK.sub(link, markdown)


def on_post_page(output: str, page, config) -> str:
    here = posixpath.dirname(page.url) or "."
    return output.replace(SHIM, posixpath.relpath("assets/iframe-worker.js", here))


def on_post_template(output_content: str, template_name: str, config) -> str:
    return output_content.replace(SHIM, "assets/iframe-worker.js")  # 404.html


def on_page_content(html: str, page, config, files) -> str:
    return LONG.sub('<code class="long">', html)
