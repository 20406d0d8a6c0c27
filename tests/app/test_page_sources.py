"""The scripts, styles and pages themselves: their budgets, and that they bring in nothing from elsewhere."""

import re
from pathlib import Path

import pytest

import isinglass

PACKAGE = Path(isinglass.__file__).parent
FILES = sorted([*(PACKAGE / "app" / "static").iterdir(), *(PACKAGE / "pages" / "static").iterdir()])
NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_keeps_its_budget_and_to_itself(file):
    text = file.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    if file.suffix == ".js":
        assert [line for line in text.splitlines() if len(line) > 120] == []
        assert text.count('"use strict";') == 1
    elsewhere = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text.replace(NAMESPACE, ""))
    assert [one for one in elsewhere if one.startswith(("http", "//"))] == []
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|eval|new Function|document\.write)\b", text)


def test_the_page_has_no_script_or_style_inside():
    page = (PACKAGE / "app" / "static" / "index.html").read_text("utf-8")
    assert re.search(r"<style|style=|\son\w+=|javascript:", page) is None
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) > 10
    assert all("src=" in head and not body for head, body in scripts)


def test_every_script_and_style_is_in_the_page_and_no_other():
    page = (PACKAGE / "app" / "static" / "index.html").read_text("utf-8")
    asked = set(re.findall(r'(?:src|href)="/(static|shared)/([\w.-]+)"', page))
    own = {("static", one.name) for one in FILES if one.parent.parent.name == "app" and one.suffix != ".html"}
    shared = {("shared", one.name) for one in FILES if one.parent.parent.name == "pages"} | {("shared", "page.css")}
    assert asked == own | shared
