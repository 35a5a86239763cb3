"""README, docs/ and the other pages: links lead somewhere, named things exist, shown commands and configs are valid."""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import yaml

import tokconv
from tokconv.cli.arguments import parse as parse_arguments
from tokconv.config import overrides
from tokconv.config.keys import GROUPS
from tokconv.config.tree import Config
from tokconv.sweep.spec.file import load_spec

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "cluster/README.md")), *DOCS]
ROOMS = "|".join(path.name for path in (ROOT / "tokconv").iterdir() if path.is_dir() and path.name.isalpha())
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=\S+")
PLACEHOLDERS = re.compile(r"\.\.\.|key=value|=X\b")
"""What marks a command as a pattern that nobody could type."""
TREE_LINE = re.compile(r"( +)([\w-]+/|\w+\.py)(?= |$)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def fences(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def code_spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def shown_commands(page: Path) -> list[list[str]]:
    """Return the words of each `tokconv` command on a page, in its shell blocks and in its sentences."""
    lines = "\n".join(fences(page, "sh")).replace("\\\n", " ").splitlines() + code_spans(page)
    commands = [shlex.split(line, comments=True) for line in lines if line.lstrip().startswith("tokconv ")]
    return [command for command in commands if not PLACEHOLDERS.search(" ".join(command))]


def exit_code(arguments: list[str]) -> object:
    """Return what the command line exits with if it does not accept the arguments, or after `--help`; else 0."""
    try:
        parse_arguments(arguments)
    except SystemExit as end:
        return end.code
    return 0


def check_overrides(words: list[str]) -> None:
    """Raise ConfigError or SweepError unless each `key=value` is a key of the config or of a sweep's spec."""
    roots = {*vars(Config()), *GROUPS}
    of_config = [word for word in words if re.split(r"[.=]", word)[0] in roots]
    overrides.parse(of_config)
    if len(of_config) < len(words):
        load_spec(ROOT / "sweeps" / "demo.yaml", [word for word in words if word not in of_config])


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as code-hosting pages and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def exists(name: str) -> bool:
    """Return whether `tokconv.a.b` is a module, or a name that a module defines, without importing what is heavy."""
    *parents, last = name.split(".")
    if parents == ["tokconv"] and last in dir(tokconv):
        return True
    package = ROOT.joinpath(*parents)
    if (package / last).is_dir() or (package / f"{last}.py").is_file():
        return True
    source = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
    return (
        re.search(rf"^(def|class) {last}\b|^{last}\b.* =|^from .* import .*\b{last}\b", source.read_text(), re.M)
        is not None
    )


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_relative_to(ROOT), target
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


@each_page
def test_named_modules_and_files_exist(page: Path) -> None:
    for span in code_spans(page):
        if dotted := re.fullmatch(r"(tokconv(?:\.\w+)+)(\(.*\))?", span):
            assert exists(dotted[1]), span
        elif re.fullmatch(r"(tokconv|tests|tools|docs|sweeps|notebooks|cluster)/[\w./*-]*", span):
            assert list(ROOT.glob(span.rstrip("/"))), span
        elif re.fullmatch(rf"({ROOMS})/[\w./*-]*", span):
            assert list((ROOT / "tokconv").glob(span.rstrip("/"))), span
        elif re.fullmatch(r"test_\w+\.py", span):
            assert list((ROOT / "tests").rglob(span)), span


@each_page
def test_shown_commands_are_valid(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in shown_commands(page):
        arguments = words[1:]
        if len(arguments) == 1 and not arguments[0].startswith("-"):
            arguments.append("--help")  # a command's mere name
        assert exit_code(arguments) == 0, f"{shlex.join(words)}: {capsys.readouterr().err}"
        check_overrides([word for word in arguments if OVERRIDE.fullmatch(word)])


@each_page
def test_shown_overrides_are_valid(page: Path) -> None:
    for span in code_spans(page):
        words = span.split()
        if all(OVERRIDE.fullmatch(word) for word in words) and not PLACEHOLDERS.search(span):
            check_overrides(words)


@each_page
def test_shown_python_compiles(page: Path) -> None:
    for text in fences(page, "python"):
        ast.parse(text)


def test_the_readme_shows_the_example_of_the_package() -> None:
    (example,) = fences(ROOT / "README.md", "python")
    assert textwrap.indent(example, "    ") in (tokconv.__doc__ or "")


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_a_page_opens_with_what_it_explains(page: Path) -> None:
    title, opening = page.read_text(encoding="utf-8").split("\n\n")[:2]
    assert re.fullmatch(r"# .+", title)
    assert opening.startswith("This page explains")


def test_every_page_is_on_the_site() -> None:
    sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = re.findall(r"[\w./-]+\.md", yaml.safe_dump(sections))
    assert sorted(set(listed)) == sorted(listed)
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} <= set(listed)
    assert all((ROOT / name).is_file() for name in listed)


def test_the_tree_of_the_architecture_has_every_module() -> None:
    (tree,) = (text for text in fences(ROOT / "docs" / "architecture.md", "") if text.startswith("tokconv/\n"))
    listed, folders = [], {0: "tokconv/"}
    for line in tree.splitlines()[1:]:
        if match := TREE_LINE.match(line):
            depth, name = len(match[1]), match[2]
            parent = folders[max(level for level in folders if level < depth)]
            if name.endswith("/"):
                folders = {level: folder for level, folder in folders.items() if level < depth} | {depth: parent + name}
            else:
                listed.append(parent + name)
    there = (path.relative_to(ROOT).as_posix() for path in (ROOT / "tokconv").rglob("*.py"))
    assert sorted(listed) == sorted(name for name in there if not Path(name).name.startswith("__"))
