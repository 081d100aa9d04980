"""The notebooks of the site: `mkdocs build` shows them as pages, `python docs/notebooks.py` runs them anew.

They are kept with the outputs that they gave, made small, so that whoever reads them here sees what a run shows.
"""

from __future__ import annotations

import io
import json
import shutil
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "notebooks"
KINDS = ("image/png", "text/html", "text/plain")  # of an output, the one that is kept first
_DOWNLOAD = '<p><a href="{name}" download>Download this notebook</a>, which runs offline in seconds.</p>'


# For mkdocs.


def on_files(files: Any, config: Any) -> Any:
    """Take each notebook for a page."""
    from mkdocs.structure.files import File

    class Notebook(File):
        def is_documentation_page(self) -> bool:
            return True

    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(Notebook(file.src_uri, file.src_dir, file.dest_dir, file.use_directory_urls))
    return files


def on_page_read_source(page: Any, config: Any) -> str | None:
    """The text of a notebook's page."""
    path = Path(page.file.abs_src_path)
    return as_markdown(json.loads(path.read_text()), path.name) if path.suffix == ".ipynb" else None


def on_post_build(config: Any) -> None:
    """Put the notebooks beside their pages, and the pages' text, which llms.txt names."""
    docs = FOLDER.parent
    for path in [*docs.rglob("*.ipynb"), *docs.rglob("*.md")]:
        shutil.copy(path, Path(config["site_dir"], path.relative_to(docs)))


def as_markdown(notebook: Any, name: str) -> str:
    """A notebook as a page: its text, its code and what that gave."""
    title, *parts = [part for cell in notebook["cells"] for part in _parts(cell)]
    return "\n\n".join([title, _DOWNLOAD.format(name=name), *parts]) + "\n"


def _parts(cell: Any) -> Iterator[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield text
        return
    yield f"```python\n{text}\n```"
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            yield f"```text\n{''.join(output['text']).rstrip()}\n```"
            continue
        kind = next(kind for kind in KINDS if kind in output["data"])
        content = "".join(output["data"][kind])
        if kind == "image/png":
            yield f"![what the cell shows](data:image/png;base64,{content.strip()})"
        else:
            yield content if kind == "text/html" else f"```text\n{content}\n```"


# For whoever changed them.


def run(path: Path) -> Any:
    """Execute a notebook in a kernel of this Python, and return it with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    return notebook


def _small(output: Any) -> Any:
    """An output in one form, its picture packed as small as can be."""
    from PIL import Image

    output = {name: value for name, value in output.items() if name != "execution_count"} | (
        {"execution_count": None} if "execution_count" in output else {}
    )
    if "data" not in output:
        return output
    kind = next(kind for kind in KINDS if kind in output["data"])
    content = output["data"][kind]
    if kind == "image/png":
        file = io.BytesIO()
        picture = Image.open(io.BytesIO(b64decode(content))).convert("RGB")
        few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(file, "png", optimize=True)
        content = b64encode(file.getvalue()).decode()
    return output | {"data": {kind: content}, "metadata": {}}


def write(path: Path) -> None:
    """Execute a notebook and keep it with small outputs and nothing of the run that another would not have."""
    notebook = run(path)
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell["execution_count"] = None
            cell["outputs"] = [_small(output) for output in cell["outputs"]]
    notebook["metadata"] = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for one in sorted(FOLDER.glob("*.ipynb")):
        write(one)
        print(f"wrote {one.name}, {one.stat().st_size / 1e3:.0f} kB")
