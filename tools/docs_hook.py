"""Gives MkDocs every file under its path in the repository.

MkDocs takes pages from docs/ alone and names them without that folder; the README is above it. With the paths of the
repository a relative link such as docs/results.md works on a code-hosting page and on the site, without rewriting.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
BESIDE_DOCS = ("*.md", "LICENSE", "CITATION.cff", "cluster/**/*", "sweeps/*.yaml", "notebooks/*.ipynb")
"""Pages outside docs/, and what pages link to."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the theme's files and the repository's, each of these under its path from the root."""
    paths = [path for pattern in BESIDE_DOCS for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
            paths.append(Path(config.docs_dir, file.src_uri))
    for path in paths:
        source = path.relative_to(ROOT).as_posix()
        files.append(File(source, str(ROOT), config.site_dir, config.use_directory_urls))
    return files
